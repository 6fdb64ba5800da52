//! The line to the server.

use std::os::fd::OwnedFd;

use rustix::net::{SocketAddrAny, getpeername, getsockname};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::support::World;

/// Copies of all sockets this process has.
fn sockets(own: &OwnedFd) -> Vec<OwnedFd> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|number| pidfd_getfd(own, number, PidfdGetfdFlags::empty()).ok())
        .collect()
}

fn port(address: SocketAddrAny) -> Option<u16> {
    std::net::SocketAddr::try_from(address).ok().map(|a| a.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_end_of_the_line_waits_before_it_sends() {
    let world = World::start().await;
    let own = pidfd_open(Pid::from_raw(getpid().as_raw_nonzero().get()).unwrap(), PidfdFlags::empty()).unwrap();
    let server = world.domain.port();
    let (mut accepted, mut connected) = (0, 0);
    for socket in sockets(&own) {
        let (Some(here), Some(there)) = (getsockname(&socket).ok().and_then(port), getpeername(&socket).ok().flatten().and_then(port))
        else {
            continue;
        };
        if here == server || there == server {
            assert!(rustix::net::sockopt::tcp_nodelay(&socket).unwrap(), "each call would wait 40 ms for an acknowledgement");
            accepted += usize::from(here == server);
            connected += usize::from(there == server);
        }
    }
    assert!(accepted >= 1 && connected >= 1, "{accepted} {connected}");
}
