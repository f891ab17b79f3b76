//! The Unix socket between `penstock` and `penstock-engine`. Decides when its owner is woken: for what there is to read, and
//! for room to write only while somebody waits for it. Never knows what it carries.
//!
//! tokio's own socket asks the kernel for both at once, and a Unix socket has room to tell of whenever the other side has read
//! something: each frame would wake its sender once more. Between two processes that do next to nothing for a request, these
//! wake-ups are a good part of what it costs.

use bytes::{Buf, BufMut, BytesMut};
use rustix::net::{RecvFlags, recv};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;

/// Segments of one write; the kernel takes 1024.
const SEGMENTS_MAX: usize = 64;

/// Until it is asked again whether a descriptor is free.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(1);

/// One end of a connection. It has one reader; whoever writes takes care that nobody else does.
#[derive(Debug)]
pub struct Socket {
    /// Known to the runtime for reading.
    stream: AsyncFd<UnixStream>,
}

impl Socket {
    /// Takes the place of tokio's. Must be called within the runtime that is to read it.
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        Ok(Self { stream: watched(stream.into_std()?, Interest::READABLE)? })
    }

    /// Appends what has come, once something has; how many bytes, 0 at the end of the stream. Loses nothing if it is dropped.
    pub async fn read(&self, into: &mut BytesMut) -> io::Result<usize> {
        loop {
            // Who always has something to read lets others have their turn.
            consume_budget().await;
            let mut ready = self.stream.readable().await?;
            let room = into.chunk_mut();
            let most = room.len();
            // SAFETY: nothing is written there but by the kernel, who leaves nothing uninitialised that it says it has written.
            let room = unsafe { room.as_uninit_slice_mut() };
            match recv(self.stream.get_ref(), room, RecvFlags::empty()) {
                Ok(((read, _), _)) => {
                    let read = read.len();
                    // There was no more: what comes now is told anew.
                    if read < most {
                        ready.clear_ready();
                    }
                    // SAFETY: so many bytes have been written there.
                    unsafe { into.advance_mut(read) };
                    return Ok(read);
                }
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Calls `read` whenever there may be something to read, until it does not say that it would have to wait.
    pub async fn read_with<R>(&self, mut read: impl FnMut(&UnixStream) -> io::Result<R>) -> io::Result<R> {
        self.stream.async_io(Interest::READABLE, |stream| read(stream)).await
    }

    /// Writes as much as there is room for at once. An error of the kind [`ErrorKind::WouldBlock`] says that there is none.
    pub fn try_write(&self, segments: &mut impl Buf) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); SEGMENTS_MAX];
        let filled = segments.chunks_vectored(&mut slices);
        let written = self.stream.get_ref().write_vectored(&slices[..filled])?;
        segments.advance(written);
        Ok(())
    }

    /// Writes all, and waits for room where there is none. If it is dropped, what is left of `segments` has not been written.
    pub async fn write_all(&self, segments: &mut impl Buf) -> io::Result<()> {
        let mut room: Option<AsyncFd<UnixStream>> = None;
        while segments.has_remaining() {
            consume_budget().await;
            let mut ready = match &room {
                Some(room) => Some(room.writable().await?),
                None => None,
            };
            match self.try_write(segments) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => match &mut ready {
                    Some(ready) => ready.clear_ready(),
                    None => match self.once_more() {
                        Ok(once_more) => room = Some(once_more),
                        // That no descriptor is free is no fault of whoever reads.
                        Err(_) => tokio::time::sleep(WITHOUT_DESCRIPTOR).await,
                    },
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The same socket, known to the runtime for writing; for no longer than it takes.
    fn once_more(&self) -> io::Result<AsyncFd<UnixStream>> {
        watched(self.stream.get_ref().try_clone()?, Interest::WRITABLE)
    }
}

/// A socket of which the runtime is told what its owner waits for.
fn watched(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: it is open for as long as it is there, and always has the same number.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::os::fd::AsRawFd;

    fn pair() -> (Socket, Socket) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (Socket::new(ours).unwrap(), Socket::new(theirs).unwrap())
    }

    #[tokio::test]
    async fn what_is_written_is_read_in_whatever_pieces() {
        let (ours, theirs) = pair();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
        let mut segments = Bytes::from(sent.clone()).chain(&b"end"[..]);
        let (written, read) = tokio::join!(ours.write_all(&mut segments), async {
            let mut read = BytesMut::with_capacity(1000);
            while read.len() < 3_000_003 {
                assert!(theirs.read(&mut read).await.unwrap() > 0);
            }
            read
        });
        written.unwrap();
        assert_eq!(read, [&sent[..], b"end"].concat());
        drop(ours);
        assert_eq!(theirs.read(&mut BytesMut::new()).await.unwrap(), 0, "the end");
    }

    #[tokio::test]
    async fn without_room_nothing_is_written_and_nothing_waited_for() {
        let (ours, theirs) = pair();
        let mut segments = Bytes::from(vec![7; 16 << 20]);
        let error = loop {
            if let Err(error) = ours.try_write(&mut segments) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let left = segments.len();
        let mut read = BytesMut::with_capacity(left);
        theirs.read(&mut read).await.unwrap();
        ours.try_write(&mut segments).unwrap();
        assert!(segments.len() < left);
        drop(theirs);
        assert!(ours.write_all(&mut segments).await.is_err(), "nobody is there any more");
    }

    /// What the kernel is to tell of this socket, as bits of `epoll`.
    fn told_of(socket: &Socket) -> Vec<u32> {
        let watched = format!("tfd: {:>8} events: ", socket.stream.get_ref().as_raw_fd());
        let files = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
        let files = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        let lines = files.flat_map(|file| file.lines().map(str::to_owned).collect::<Vec<_>>());
        let events = lines.filter_map(|line| line.strip_prefix(&watched).map(str::to_owned));
        events
            .map(|events| u32::from_str_radix(events.split_whitespace().next().unwrap(), 16).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn the_kernel_is_not_asked_for_room_but_while_somebody_waits_for_it() {
        const READABLE: u32 = 0x1;
        const WRITABLE: u32 = 0x4;
        let (ours, theirs) = pair();
        let is_quiet = || {
            let told = told_of(&ours);
            !told.is_empty() && told.iter().all(|events| events & (READABLE | WRITABLE) == READABLE)
        };
        assert!(is_quiet());
        let mut segments = Bytes::from(vec![7; 4 << 20]);
        let (written, ()) = tokio::join!(ours.write_all(&mut segments), async {
            assert!(is_quiet(), "it is asked under another number");
            let mut read = BytesMut::new();
            while read.len() < 4 << 20 {
                theirs.read(&mut read).await.unwrap();
            }
        });
        written.unwrap();
        assert!(is_quiet());
    }
}
