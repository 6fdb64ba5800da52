//! Limits on connections, each with its reason.

use std::time::Duration;

/// Largest message accepted; gRPC's customary limit, which SPIRE keeps too.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest set of request headers accepted; ours need a few hundred bytes.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Calls under way on one connection: an agent with many workloads needs dozens.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Bytes a peer may have on the way in one call before we read them: one message, in pieces.
pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Bytes a peer may have on the way on one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// How often a quiet TCP connection is pinged, so that a peer that vanished is noticed.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a ping may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a TLS handshake may take; a healthy one takes milliseconds, a slow caller holds a place.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way from all addresses: each costs a fifth of a millisecond of CPU and some memory.
pub const HANDSHAKES_MAX: usize = 512;
/// Handshakes under way from one address (of IPv6: one /64); a fleet behind one NAT address reconnects in waves of this size.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 128;
/// Open connections without certificate from all addresses: an eighth of all, so that strangers cannot take the places of
/// agents.
pub const ANONYMOUS_MAX: usize = 8192;
/// Open connections without certificate from one address (of IPv6: one /64). Only nodes that join need one, for seconds; a
/// rack behind one NAT address joins in waves of this size.
pub const ANONYMOUS_PER_ADDRESS_MAX: usize = 256;
/// Open connections of one SPIFFE ID, so that whoever has one workload's SVID cannot take the places of all agents. An agent
/// needs two while it renews, and one more for each that the network lost and that is not noticed yet; a controller some for
/// each of its replicas.
pub const CONNECTIONS_PER_IDENTITY_MAX: usize = 64;
/// A connection without certificate is closed after this time: joining takes seconds, and nobody else needs one.
pub const ANONYMOUS_AGE_MAX: Duration = Duration::from_secs(60);
/// How long after its handshake a connection may take until the head of its first request is there: as long as for the
/// handshake, since whoever connects has something to ask. HTTP/2's pings begin after its preface only, and whoever answers
/// them would hold a place for ever.
pub const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call may take until its answer begins, its request included: a caller that sends half a request and waits
/// must not outlive the decision that let it in.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Open TCP connections; one an agent, at the fleet size we design for, shared by several servers.
pub const TCP_CONNECTIONS_MAX: usize = 65_536;
/// Age at which a TCP connection is asked to go, as in SPIRE: agents come again and spread over the servers of a load balancer.
/// Calls under way are finished, and a connection that carries an agent's stream stays.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(180);
/// The most by which that age differs from one connection to the next, up or down, as a part of it, so that agents that came
/// together do not come again together.
pub const CONNECTION_AGE_SPREAD: f64 = 0.1;
/// Open connections on a Unix socket.
pub const UNIX_CONNECTIONS_MAX: usize = 16_384;
/// Open connections of one local user on a Unix socket, so that one user cannot keep the others out.
pub const UNIX_CONNECTIONS_PER_USER_MAX: usize = 8192;
/// Longest path of a Unix socket (`sun_path` of Linux, with its closing zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long to wait for a TCP connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
