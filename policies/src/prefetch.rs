//! Has the processor fetch memory that will be read soon. Decides nothing, and changes nothing but how long others take.

/// As many lines of the cache as hold this.
#[inline]
pub(crate) fn prefetch<T: ?Sized>(what: &T) {
    prefetch_start(what, size_of_val(what));
}

/// As many as hold its first bytes: each line takes its time, and the place of another one.
#[inline]
pub(crate) fn prefetch_start<T: ?Sized>(what: &T, bytes: usize) {
    const LINE: usize = 64;
    let start = (&raw const *what).cast::<u8>();
    for at in (0..bytes).step_by(LINE) {
        line(start.wrapping_add(at));
    }
    // It need not begin where a line does, and may reach into one more.
    line(start.wrapping_add(bytes.saturating_sub(1)));
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: nothing is read and nothing can fail, whatever is there or not.
    unsafe { _mm_prefetch(at.cast(), _MM_HINT_T0) };
}

/// Rust has no word for it here.
#[cfg(not(target_arch = "x86_64"))]
fn line(_: *const u8) {}
