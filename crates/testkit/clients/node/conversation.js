// Conversations over mutual TLS: the server that answers pings, and the client that obeys lines on standard input.

import { constants } from 'node:crypto';
import { once } from 'node:events';
import readline from 'node:readline';
import tls from 'node:tls';
import { serial, spiffeId } from './workload_api.js';

// A peer that connects, or is asked, and says nothing is not waited for any longer (milliseconds).
const SILENCE_MAX = 10_000;

// guide: begin tls
function options(source, peers) {
  const { key, chain } = source.svid();
  const ca = source.authorities(peers);
  // A resumed session is not checked again, so none is resumed.
  return { key, cert: chain, ca, requestCert: true, rejectUnauthorized: true, secureOptions: constants.SSL_OP_NO_TICKET };
}
// guide: end tls

// guide: begin server
function listen(source, peers, answer) {
  // Peers are verified all the same; Node closes the connection without saying why, so we do it.
  const server = tls.createServer({ ...options(source, peers), rejectUnauthorized: false, handshakeTimeout: SILENCE_MAX }, (socket) => {
    const invalid = socket.authorized ? undefined : new Error(`the peer's certificate is not valid: ${socket.authorizationError}`);
    const refusal = invalid ?? source.refusal(socket.getPeerCertificate(), peers);
    if (refusal) server.emit('tlsClientError', refusal, socket.destroy());
    else answer(socket);
  });
  source.on('update', () => server.setSecureContext(options(source, peers)));
  return server;
}
// guide: end server

// guide: begin client
function connectTo(source, port, id) {
  const checkServerIdentity = (_host, peer) => source.refusal(peer, [id]);
  return tls.connect({ ...options(source, [id]), host: '127.0.0.1', port, checkServerIdentity });
}
// guide: end client

export function serve(source, peers, say) {
  const server = listen(source, peers, async (socket) => {
    const peer = socket.getPeerX509Certificate();
    const [you, your_serial] = [spiffeId(peer.subjectAltName), serial(peer.serialNumber)];
    for await (const line of lines(socket)) {
      if (line === 'ping') socket.write(`${JSON.stringify({ you, your_serial, my_serial: serialInHand(source) })}\n`);
    }
    socket.end();
  });
  server.on('tlsClientError', (refusal) => say({ refused: refusal.message }));
  server.listen(0, '127.0.0.1', () => say({ listening: server.address().port }));
}

function serialInHand(source) {
  try {
    return serial(source.svid().leaf.serialNumber);
  } catch {
    return null; // taken away, or expired; open connections go on
  }
}

/** The lines of a connection until it ends, however it ends: readline alone waits for ever after a reset. */
function lines(socket) {
  const reader = readline.createInterface({ input: socket });
  socket.on('error', () => {});
  socket.once('close', () => reader.close());
  return reader;
}

export async function connect(source, say) {
  const connections = new Map();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, name, port, id] = line.trim().split(/\s+/);
    try {
      if (command === 'quit') return;
      else if (command === 'serial') say({ serial: serial(source.svid().leaf.serialNumber) });
      else if (command === 'open') say(await open(source, connections, name, Number(port), id));
      else if (command === 'ping') say(await ping(connections.get(name), name));
      else if (command === 'close') {
        connections.get(name)?.socket.destroy();
        connections.delete(name);
        say({ closed: name });
      } else throw new Error(`${line} is not known`);
    } catch (failure) {
      say({ failed: name ?? '', error: failure.message });
    }
  }
}

async function open(source, connections, name, port, id) {
  const socket = connectTo(source, port, id);
  silenceEnds(socket);
  await once(socket, 'secureConnect');
  socket.setTimeout(0);
  const connection = { socket, lines: lines(socket)[Symbol.asyncIterator](), failure: new Error('the peer closed the connection') };
  socket.on('error', (failure) => { connection.failure = failure; });
  connections.set(name, connection);
  const peer = socket.getPeerX509Certificate();
  return { opened: name, peer: spiffeId(peer.subjectAltName), peer_serial: serial(peer.serialNumber) };
}

async function ping(connection, name) {
  if (!connection) throw new Error('there is no connection of this name');
  silenceEnds(connection.socket);
  connection.socket.write('ping\n');
  const { value, done } = await connection.lines.next();
  connection.socket.setTimeout(0);
  if (done) throw connection.failure;
  return { ...JSON.parse(value), via: name };
}

function silenceEnds(socket) {
  socket.setTimeout(SILENCE_MAX, () => socket.destroy(new Error(`no answer within ${SILENCE_MAX / 1000} s`)));
}
