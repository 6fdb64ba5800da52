// The SPIFFE Workload API for Node, small enough to be copied: no client library is kept up.
// It needs workload.proto of the standard beside it. See docs/guides/node.md.

import { X509Certificate, createPrivateKey } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import { decodeJwt, decodeProtectedHeader, importJWK, jwtVerify } from 'jose';

// Between two attempts, in milliseconds: soon enough for a new identity, seldom enough for an agent that is down.
const RETRY_MIN = 100;
const RETRY_MAX = 1000;
// Of the standard's list; an allow-list keeps out `none` and keys used as secrets.
const ALGORITHMS = ['RS256', 'RS384', 'RS512', 'ES256', 'ES384', 'ES512', 'PS256', 'PS384', 'PS512'];

/** The four calls. Each carries the header that proves the caller is not a browser led here by a web page. */
export class WorkloadApi {
  #client;
  #header = new grpc.Metadata();

  constructor(socket = process.env.SPIFFE_ENDPOINT_SOCKET) {
    if (!socket) throw new Error('SPIFFE_ENDPOINT_SOCKET is not set');
    const proto = protoLoader.loadSync(new URL('workload.proto', import.meta.url).pathname, { keepCase: true });
    const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(proto);
    // The channel's own pause would otherwise grow to two minutes while the agent is away.
    const options = { 'grpc.initial_reconnect_backoff_ms': RETRY_MIN, 'grpc.max_reconnect_backoff_ms': RETRY_MAX };
    this.#client = new SpiffeWorkloadAPI(socket, grpc.credentials.createInsecure(), options);
    this.#header.set('workload.spiffe.io', 'true');
  }

  /** Full messages, one for every change, until the stream breaks. */
  async *stream(method) {
    const call = this.#client[method]({}, this.#header);
    try {
      yield* call;
    } finally {
      call.cancel();
    }
  }

  /** The first message of a stream, or the answer to a single call; a refusal is tried again until `until`. */
  async first(method, request, until) {
    for (let wait = RETRY_MIN; ; wait = Math.min(2 * wait, RETRY_MAX)) {
      try {
        return await this.#once(method, request, until);
      } catch (failure) {
        if (Date.now() + wait >= until) throw failure;
      }
      await pause(wait);
    }
  }

  #once(method, request, deadline) {
    return new Promise((resolve, reject) => {
      if (!this.#client[method].responseStream) {
        this.#client[method](request, this.#header, { deadline }, (failure, answer) => (failure ? reject(failure) : resolve(answer)));
        return;
      }
      const call = this.#client[method](request, this.#header, { deadline });
      call.once('data', (message) => { resolve(message); call.cancel(); });
      call.on('error', reject);
      call.once('end', () => reject(new Error('the agent ended the stream')));
    });
  }
}

/** The newest X509-SVID and bundles. Emits `update` when they change, and `failure` for each attempt that failed. */
export class X509Source extends EventEmitter {
  #current = null;
  #failure = new Error('the agent has not answered');

  /** Waits for the first X509-SVID until the deadline; from then on follows the agent for ever. */
  static async start(api, deadlineMillis) {
    const source = new X509Source();
    const first = new Promise((resolve) => source.once('update', resolve));
    source.#follow(api);
    const late = new AbortController();
    await Promise.race([first, pause(deadlineMillis, undefined, { signal: late.signal })]);
    late.abort();
    if (!source.#current) throw new Error(`no X509-SVID within ${deadlineMillis / 1000} s: ${source.#failure.message}`);
    return source;
  }

  /** The X509-SVID in hand; throws when it was taken away or has expired. */
  svid() {
    if (!this.#current) throw this.#failure;
    const { validTo } = this.#current.leaf;
    if (Date.parse(validTo) <= Date.now()) throw new Error(`the X509-SVID expired at ${validTo}`);
    return this.#current;
  }

  /**
   * The authorities TLS verifies these peers by: those of their trust domain and no others, because TLS would let each of
   * them vouch for anybody. None when the agent gave no bundle of it.
   */
  authorities(ids) {
    const [name, ...more] = new Set(ids.map(trustDomain));
    if (!name || more.length > 0) throw new Error(`the peers are not of one trust domain: ${ids.join(', ')}`);
    return (this.svid().bundles.get(name) ?? []).map(String);
  }

  /** Why this peer, whose chain TLS has verified by `authorities(ids)`, is none of `ids`; nothing when it is one. */
  refusal(peer, ids) {
    try {
      const id = spiffeId(peer.subjectaltname);
      if (!ids.includes(id)) return new Error(`the peer is ${id}, which is not allowed here`);
      // Its trust domain may have lost its bundle since TLS was given it.
      return this.authorities(ids).length > 0 ? undefined : new Error(`there is no bundle of ${trustDomain(id)}`);
    } catch (failure) {
      return failure;
    }
  }

  async #follow(api) {
    for (let wait = RETRY_MIN; ; wait = Math.min(2 * wait, RETRY_MAX)) {
      try {
        for await (const message of api.stream('FetchX509SVID')) {
          this.#current = read(message);
          wait = RETRY_MIN;
          this.emit('update');
        }
        throw new Error('the agent ended the stream');
      } catch (failure) {
        this.#failure = failure;
        // Taken away: nobody may be spoken to in its name. An agent that is merely away changes nothing.
        if (failure.code === grpc.status.PERMISSION_DENIED) this.#current = null;
        this.emit('failure', failure);
      }
      await pause(wait);
    }
  }
}

/** Verifies a JWT-SVID by the keys of its trust domain; `bundles` is the answer of FetchJWTBundles. */
export async function validate(token, audience, bundles) {
  const id = String(decodeJwt(token).sub);
  const { kid, typ = 'JWT' } = decodeProtectedHeader(token);
  if (!['JWT', 'JOSE'].includes(typ)) throw new Error(`the token's type is ${typ}`);
  const keys = JSON.parse(bundles[`spiffe://${trustDomain(id)}`]?.toString() ?? '{"keys":[]}').keys;
  const key = keys.find((candidate) => candidate.kid === kid);
  if (!kid || !key) throw new Error(`no key ${kid} in the JWT bundle of ${trustDomain(id)}`);
  // The standard's `use` is `jwt-svid`, which general libraries do not know.
  const { use, ...plain } = key;
  await jwtVerify(token, ({ alg }) => importJWK(plain, alg), { audience, algorithms: ALGORITHMS, requiredClaims: ['exp', 'sub'] });
  return id;
}

/** The only URI among the names of a certificate. Node quotes a name that could pass for several; none has to. */
export function spiffeId(subjectAltName = '') {
  const uris = subjectAltName.split(', ').filter((name) => name.startsWith('URI:'));
  if (uris.length !== 1 || subjectAltName.includes('"')) throw new Error('the certificate has not exactly one URI');
  return uris[0].slice('URI:'.length);
}

export function trustDomain(id) {
  const parts = /^spiffe:\/\/([a-z0-9._-]+)(\/[A-Za-z0-9._/-]*)?$/.exec(id);
  if (!parts) throw new Error(`${id} is not a SPIFFE ID`);
  return parts[1];
}

/** The serial number as lower-case hexadecimal without leading zeros. */
export function serial(hex) {
  return BigInt(`0x${hex}`).toString(16);
}

function read(message) {
  const svid = message.svids?.[0];
  if (!svid) throw new Error('the agent sent no X509-SVID');
  const [leaf, ...intermediates] = certificates(svid.x509_svid);
  const bundles = new Map([[trustDomain(svid.spiffe_id), certificates(svid.bundle)]]);
  if (bundles.get(trustDomain(svid.spiffe_id)).length === 0) throw new Error(`the agent sent no authority of ${trustDomain(svid.spiffe_id)}`);
  for (const [name, der] of Object.entries(message.federated_bundles ?? {})) bundles.set(trustDomain(name), certificates(der));
  const key = createPrivateKey({ key: svid.x509_svid_key, format: 'der', type: 'pkcs8' }).export({ format: 'pem', type: 'pkcs8' });
  return { id: svid.spiffe_id, leaf, chain: [leaf, ...intermediates].join(''), key, bundles };
}

/** Certificates as the Workload API sends them: DER, one behind the other. */
export function certificates(der) {
  const found = [];
  for (let rest = der ?? Buffer.alloc(0); rest.length > 0; rest = rest.subarray(found.at(-1).raw.length)) found.push(new X509Certificate(rest));
  return found;
}
