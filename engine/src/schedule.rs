//! What the kernel is told about threads that must not stand in the way of others. Advice: where it cannot be followed,
//! all goes on as before.

use std::io;

/// Gets a small share of the cores while others have work.
const NICEST: i32 = 19;

/// Gets a quarter of a core that somebody else wants as well.
const NICE: i32 = 5;

/// A thread that wakes up waits until the running one has had its slice, unless its own is shorter (Linux 6.12): with
/// the longest that there is, everybody goes first.
const SLICE_NS: u64 = 100_000_000;

/// This thread, but none that it starts, runs as soon as it has something to do: a request that is read or refused must not
/// wait for the end of a run on the same core. On kernels that interrupt nobody for an ordinary thread (`PREEMPT_NONE`) that
/// would be the next tick, 4 ms. Takes the right to do so, `CAP_SYS_NICE` or a limit of real-time priorities of at least 1; an
/// error says that it is not there.
pub fn at_once() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads a structure that lives; 0 is this thread.
    let told = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    };
    if told == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// This thread, and those that it starts, let everybody go first who wakes up, and still get on where no core is ever idle:
/// for what somebody waits for, such as the models that an engine begins with.
pub(crate) fn beside_others() {
    go_after(NICE, SLICE_NS);
}

/// This thread, and those that it starts, go after all others. There may be no way back.
pub(crate) fn in_the_background() {
    go_after(NICEST, SLICE_NS);
}

/// This thread goes after those that run models and those that read, and still gets on beside them.
pub(crate) fn after_lanes() {
    go_after(NICE, 0);
}

/// A slice of 0 is the usual one.
fn go_after(nice: i32, slice_ns: u64) {
    /// As in linux/sched/types.h, first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice_ns,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that lives; 0 is this thread.
    let told = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if told != 0 {
        tracing::debug!("the kernel takes no advice: {}", io::Error::last_os_error());
    }
}
