//! A process that has used up its descriptors still writes what it has to write. Alone in its process, because the others would
//! have none either.

use bytes::{Bytes, BytesMut};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket::Socket;
use std::fs::File;

#[tokio::test]
async fn a_full_socket_is_waited_for_even_where_no_descriptor_is_free() {
    let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    let (ours, theirs) = (Socket::new(ours).unwrap(), Socket::new(theirs).unwrap());
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(32), ..before }).unwrap();
    let held: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!held.is_empty());
    let mut segments = Bytes::from(vec![7; 4 << 20]);
    let (written, read) = tokio::join!(ours.write_all(&mut segments), async {
        drop(held); // somebody else has left, after the socket was found full
        let mut read = BytesMut::new();
        while read.len() < 4 << 20 {
            read.reserve(64 << 10);
            assert!(theirs.read(&mut read).await.unwrap() > 0);
        }
        read
    });
    written.unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
}
