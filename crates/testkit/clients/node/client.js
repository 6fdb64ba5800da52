// A workload over the SPIFFE Workload API, as a user of Node writes it. See docs/guides/node.md.
//
//   x509 | jwt AUDIENCE | validate AUDIENCE TOKEN | bundles | watch | serve PEER_ID… | connect
//
// `--deadline SECONDS` may follow the command. Each answer is one JSON object on a line of standard output.

import { connect, serve } from './conversation.js';
import { WorkloadApi, X509Source, certificates, serial, trustDomain, validate } from './workload_api.js';

const USAGE = 'usage: x509 | jwt AUDIENCE | validate AUDIENCE TOKEN | bundles | watch | serve PEER_ID… | connect';

// guide: begin source
function x509Source(deadline) {
  return X509Source.start(new WorkloadApi(), deadline);
}
// guide: end source

// guide: begin jwt
async function token(api, audience, until) {
  const { svids } = await api.first('FetchJWTSVID', { audience: [audience] }, until);
  return svids[0];
}
// guide: end jwt

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function takeDeadline(words) {
  const at = words.indexOf('--deadline');
  if (at < 0) return 10_000;
  const seconds = Number(words[at + 1]);
  if (!Number.isFinite(seconds) || seconds < 0) throw new Error('`--deadline` needs a number of seconds');
  words.splice(at, 2);
  return seconds * 1000;
}

function update(source) {
  const { id, leaf, bundles } = source.svid();
  return { spiffe_id: id, serial: serial(leaf.serialNumber), authorities: bundles.get(trustDomain(id)).length };
}

function counted(bundles, count) {
  return Object.fromEntries(Object.entries(bundles).map(([name, bytes]) => [trustDomain(name), count(bytes)]));
}

/** The exit code, or nothing when the program goes on. */
async function run(words) {
  const deadline = takeDeadline(words);
  const [command, ...rest] = words;
  if (rest.length < ({ jwt: 1, validate: 2 }[command] ?? 0)) throw new Error(USAGE);
  const api = new WorkloadApi();
  const until = Date.now() + deadline;
  switch (command) {
    case 'x509':
      say(update(await x509Source(deadline)));
      return 0;
    case 'jwt': {
      const { spiffe_id, svid } = await token(api, rest[0], until);
      say({ spiffe_id, token: svid });
      return 0;
    }
    case 'validate': {
      const [audience, text] = rest;
      // guide: begin validate
      const { bundles } = await api.first('FetchJWTBundles', {}, until);
      const id = await validate(text, audience, bundles).catch((refusal) => say({ refused: refusal.message }));
      // guide: end validate
      if (id) say({ spiffe_id: id });
      return id ? 0 : 2;
    }
    case 'bundles': {
      const [x509, jwt] = await Promise.all(['FetchX509Bundles', 'FetchJWTBundles'].map((method) => api.first(method, {}, until)));
      say({ x509: counted(x509.bundles, (der) => certificates(der).length), jwt: counted(jwt.bundles, (set) => JSON.parse(set).keys.length) });
      return 0;
    }
    case 'watch': {
      const source = await x509Source(deadline);
      say(update(source));
      source.on('update', () => say(update(source)));
      source.on('failure', (failure) => say({ error: failure.message }));
      return undefined;
    }
    case 'serve':
      serve(await x509Source(deadline), rest, say);
      return undefined;
    case 'connect':
      await connect(await x509Source(deadline), say);
      return 0;
    default:
      throw new Error(USAGE);
  }
}

try {
  const code = await run(process.argv.slice(2));
  // The streams would keep the process alive.
  if (code !== undefined) process.exit(code);
} catch (failure) {
  process.stderr.write(`${failure.message}\nto learn why, run: countersign explain --pid ${process.pid}\n`);
  process.exit(3);
}
