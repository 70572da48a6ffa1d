//! The one port of the broker: first taken for this process alone, then shared among its shards.
//!
//! Called by boot. Invariant: from the first bind on the port is never free, so no second broker slips in between.
//! This file refuses to know what is said on a connection.

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use thiserror::Error;

/// Connections that the kernel keeps for each shard until it accepts them.
const BACKLOG: i32 = 1024;
/// A silent client is asked whether it lives after this long, and is given the same time again to say so.
const DEAD_AFTER: Duration = Duration::from_mins(1);

/// Why the broker cannot listen.
#[derive(Debug, Error)]
pub enum ListenFault {
    /// Somebody listens there already.
    #[error("{address} is in use: another broker or program listens there. Stop it, or choose another port")]
    InUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address is not one of this machine's.
    #[error(
        "{address} is not an address of this machine. Listen on one that is, or on 0.0.0.0 for all of them"
    )]
    NotLocal {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The port is reserved.
    #[error("not permitted to listen on {address}. Choose a port of 1024 or more")]
    NotPermitted {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Failed {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// The port, taken. Clients that connect wait until the shards accept.
#[derive(Debug)]
pub struct Port {
    first: Socket,
    address: SocketAddr,
}

/// The listening socket of one shard.
#[derive(Debug)]
pub struct ShardListener(pub(super) OwnedFd);

impl Port {
    /// Takes the port for this process; port 0 takes a free one. Old connections of an earlier broker that the kernel
    /// still remembers do not stand in the way, a living listener does.
    ///
    /// # Errors
    /// [`ListenFault`]
    pub fn take(address: SocketAddr) -> Result<Self, ListenFault> {
        let take = || {
            let first = socket(address, false)?;
            // Listening before the port may be shared is what makes the kernel refuse a second broker.
            first.listen(BACKLOG)?;
            let bound = first.local_addr()?.as_socket();
            Ok(Self { first, address: bound.unwrap_or(address) })
        };
        take().map_err(|source| fault(address, source))
    }

    /// Where the broker listens, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shares the port among the shards; the kernel spreads connections over them.
    ///
    /// # Errors
    /// [`ListenFault`]
    pub fn share(self, shards: u16) -> Result<Vec<ShardListener>, ListenFault> {
        let Self { first, address } = self;
        let share = || {
            first.set_reuse_port(true)?;
            let mut listeners = vec![ShardListener(first.into())];
            for _ in 1..shards {
                let next = socket(address, true)?;
                next.listen(BACKLOG)?;
                listeners.push(ShardListener(next.into()));
            }
            Ok(listeners)
        };
        share().map_err(|source| fault(address, source))
    }
}

/// A bound socket; `Socket::new` sets CLOEXEC.
fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    // Accepted sockets inherit both. Without the second a client that lost its power keeps its connection for ever.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(DEAD_AFTER).with_interval(DEAD_AFTER / 4).with_retries(4),
    )?;
    Ok(socket)
}

fn fault(address: SocketAddr, source: io::Error) -> ListenFault {
    match Errno::from_io_error(&source) {
        Some(Errno::ADDRINUSE) => ListenFault::InUse { address },
        Some(Errno::ADDRNOTAVAIL) => ListenFault::NotLocal { address },
        Some(Errno::ACCESS | Errno::PERM) => ListenFault::NotPermitted { address },
        _ => ListenFault::Failed { address, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::net::{Ipv4Addr, TcpStream};

    fn any() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    #[test]
    fn a_second_broker_is_refused_before_and_after_the_port_is_shared() {
        let port = Port::take(any()).unwrap();
        let address = port.address();
        assert_ne!(address.port(), 0);
        assert!(matches!(Port::take(address), Err(ListenFault::InUse { .. })));
        let listeners = port.share(3).unwrap();
        assert_eq!(listeners.len(), 3);
        let refused = Port::take(address).unwrap_err();
        assert!(matches!(refused, ListenFault::InUse { .. }));
        assert!(refused.to_string().contains("choose another port"));
    }

    #[test]
    fn all_shards_get_connections_and_no_child_inherits_them() {
        let port = Port::take(any()).unwrap();
        let address = port.address();
        let listeners = port.share(2).unwrap();
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        let accepted: Vec<usize> = listeners
            .iter()
            .map(|listener| std::iter::from_fn(|| rustix::net::accept(&listener.0).ok()).count())
            .collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
        for listener in &listeners {
            assert!(fcntl_getfd(&listener.0).unwrap().contains(FdFlags::CLOEXEC));
        }
        let _one_more = TcpStream::connect(address).unwrap();
        let accepted = listeners.iter().find_map(|listener| rustix::net::accept(&listener.0).ok()).unwrap();
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
    }

    #[test]
    fn the_port_is_free_again_after_a_broker_with_connections_ended() {
        let port = Port::take(any()).unwrap();
        let address = port.address();
        let listeners = port.share(1).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let accepted = rustix::net::accept(&listeners[0].0).unwrap();
        // The broker closes first, so the kernel remembers its side.
        drop((accepted, listeners));
        drop(client);
        Port::take(address).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_named_as_such() {
        let elsewhere = "192.0.2.1:0".parse().unwrap();
        assert!(matches!(Port::take(elsewhere), Err(ListenFault::NotLocal { .. })));
    }
}
