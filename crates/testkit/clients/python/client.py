"""A workload written with the SPIFFE client of PyPI, as its users write it. It finds the Workload API through
SPIFFE_ENDPOINT_SOCKET and prints one JSON object a line.

x509                     who it is
jwt AUDIENCE             a token
validate AUDIENCE TOKEN  whose token that is; exit code 2 if it is no good
bundles                  how many authorities and keys of which trust domains it trusts
watch                    the same as x509, again after every update
serve PEER_ID...         a mutual TLS server for these peers
connect                  a mutual TLS client that obeys lines on standard input

--deadline SECONDS after the command says how long it waits for the first answer. Then it exits with code 3.
"""

import contextlib
import json
import logging
import sys
import threading

# guide: begin imports
import os
import socket
import ssl

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import JwtSource, JwtSvid, SpiffeId, WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError
# guide: end imports

# How long a handshake or an answer may take, in seconds.
PATIENCE = 10


# guide: begin tls
def tls(source: X509Source, peers: list[str], server_side: bool) -> ssl.SSLContext:
    """TLS with the newest X509-SVID, for everybody of these peers' trust domain, which must be one.

    Make one for each connection, and call `peer_certificate` before the first byte: only that looks at the SPIFFE ID.
    """
    newest = source.get_x509_context()
    svid = newest.default_svid
    trust_domains = {SpiffeId(peer).trust_domain for peer in peers}
    bundle = newest.x509_bundle_set.get_bundle_for_trust_domain(min(trust_domains, key=str))
    if len(trust_domains) != 1 or bundle is None:
        raise ssl.SSLError(f"the peers are of several trust domains, or of one without a bundle: {peers}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # peers have SPIFFE IDs, not host names: see `peer_certificate`
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an authority need not be self-signed
    context.load_verify_locations(cadata=b"".join(a.public_bytes(Encoding.DER) for a in bundle.x509_authorities))
    # Python's ssl takes certificate and key from a file only. This one is in memory and has no name.
    with os.fdopen(os.memfd_create("svid", os.MFD_CLOEXEC), "wb") as file:
        file.write(svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.write(b"".join(c.public_bytes(Encoding.PEM) for c in svid.cert_chain))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def peer_certificate(connection: ssl.SSLSocket, allowed: list[str]) -> tuple[str, x509.Certificate]:
    """SPIFFE ID and certificate of a peer. The handshake has verified the chain; whose it may be is decided here."""
    leaf = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    if len(uris) != 1 or uris[0] not in allowed or usage.key_cert_sign or usage.crl_sign:
        raise ssl.SSLError(f"unexpected peer {uris}")
    return uris[0], leaf
# guide: end tls


def say(value: dict) -> None:
    # One write a line: several threads speak.
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def fail(error: Exception) -> None:
    """A source retries a denial until its deadline and forgets it. A call that does not retry tells why."""
    if "Timeout waiting for the first update" in str(error):
        try:
            WorkloadApiClient().fetch_x509_svid(timeout=1)
        except PySpiffeError as why:
            error = why
    print("no identity:", str(error).replace("\n", " "), file=sys.stderr)
    print(f"to learn why, run: countersign explain --pid {os.getpid()}", file=sys.stderr, flush=True)
    os._exit(3)  # the library's threads may still be waiting


def serial(certificate: x509.Certificate) -> str:
    return format(certificate.serial_number, "x")


def x509_source(deadline: float) -> X509Source:
    # guide: begin source
    # Waits for the first X509-SVID, then keeps itself new in a thread of its own.
    source = X509Source(timeout_in_seconds=deadline)
    # guide: end source
    return source


def describe(source: X509Source) -> dict:
    newest = source.get_x509_context()
    svid = newest.default_svid
    own = newest.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    return {"spiffe_id": str(svid.spiffe_id), "serial": serial(svid.leaf), "authorities": len(own.x509_authorities)}


def jwt(deadline: float, audience: str) -> dict:
    # guide: begin jwt
    with WorkloadApiClient() as client:
        svid = client.fetch_jwt_svid(audience={audience}, timeout=deadline)
    # guide: end jwt
    return {"spiffe_id": str(svid.spiffe_id), "token": svid.token}


def validate(deadline: float, audience: str, token: str) -> dict:
    # guide: begin validate
    keys = JwtSource(timeout_in_seconds=deadline)  # the JWT bundles, kept new; make it once, not for each token
    try:
        claimed = JwtSvid.parse_insecure(token, {audience}).spiffe_id.trust_domain  # says only which bundle to take
        svid = JwtSvid.parse_and_validate(token, keys.get_bundle_for_trust_domain(claimed), {audience})
    except PySpiffeError as error:
        # guide: end validate
        say({"refused": str(error)})
        os._exit(2)
    return {"spiffe_id": str(svid.spiffe_id)}


def bundles(deadline: float) -> dict:
    with WorkloadApiClient(default_timeout=deadline) as client:
        x509_bundles, jwt_bundles = client.fetch_x509_bundles().bundles, client.fetch_jwt_bundles().bundles
    return {
        "x509": {str(b.trust_domain): len(b.x509_authorities) for b in x509_bundles},
        "jwt": {str(b.trust_domain): len(b.jwt_authorities) for b in jwt_bundles},
    }


def watch(deadline: float) -> None:
    source = x509_source(deadline)
    changed = threading.Event()
    source.subscribe_for_updates(changed.set)
    while True:
        try:
            say(describe(source))
            while not changed.wait(timeout=0.05) and not source.is_closed():
                pass
            changed.clear()
        except PySpiffeError as error:
            # An answer that cannot be read closes the source for good.
            say({"error": str(error)})
            source = again(source)
            source.subscribe_for_updates(changed.set)


def again(source: X509Source) -> X509Source:
    while source.is_closed():
        try:
            source = X509Source(timeout_in_seconds=PATIENCE)
        except PySpiffeError as error:
            say({"error": str(error)})
    return source


def serve(source: X509Source, peers: list[str]) -> None:
    # guide: begin server
    listener = socket.create_server(("127.0.0.1", 0))

    def accept(plain: socket.socket) -> None:
        try:
            plain.settimeout(PATIENCE)
            connection = tls(source, peers, server_side=True).wrap_socket(plain, server_side=True)
            peer, certificate = peer_certificate(connection, allowed=peers)
        # guide: end server
        except Exception as error:  # whatever is wrong with one peer, the server goes on
            say({"refused": str(error)})
            plain.close()
            return
        connection.settimeout(None)
        answer(source, connection, {"you": peer, "your_serial": serial(certificate)})

    say({"listening": listener.getsockname()[1]})
    while True:
        threading.Thread(target=accept, args=(listener.accept()[0],), daemon=True).start()


def answer(source: X509Source, connection: ssl.SSLSocket, peer: dict) -> None:
    with contextlib.suppress(OSError), connection, connection.makefile("rw") as lines:
        for line in lines:
            if line == "ping\n":
                mine = serial(source.get_x509_context().default_svid.leaf)
                lines.write(json.dumps(peer | {"my_serial": mine}) + "\n")
                lines.flush()


def connect(source: X509Source) -> None:
    links = {}
    for line in sys.stdin:
        verb, name, *rest = [*line.split(), ""]
        try:
            if verb == "open":
                links[name] = open_link(source, int(rest[0]), rest[1])
                peer, certificate = peer_certificate(links[name], [rest[1]])
                say({"opened": name, "peer": peer, "peer_serial": serial(certificate)})
            elif verb == "ping":
                links[name].sendall(b"ping\n")
                say(json.loads(read_line(links[name])) | {"via": name})
            elif verb == "close":
                links.pop(name).close()
                say({"closed": name})
            elif verb == "serial":
                say({"serial": describe(source)["serial"]})
            elif verb == "quit":
                return
        except Exception as error:  # the program that gives the lines decides what to do about it
            say({"failed": name, "error": repr(error)})


def open_link(source: X509Source, port: int, peer: str) -> ssl.SSLSocket:
    # guide: begin client
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection = tls(source, [peer], server_side=False).wrap_socket(plain)
    peer_certificate(connection, allowed=[peer])
    # guide: end client
    return connection


def read_line(connection: ssl.SSLSocket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(4096)
        if not part:
            raise ConnectionError("the peer closed the connection")
        line += part
    return line


def main(command: str, *rest: str) -> None:
    logging.disable()  # what the library logs is said below
    deadline, rest = (float(rest[1]), rest[2:]) if rest[:1] == ("--deadline",) else (10.0, rest)
    try:
        if command == "x509":
            with x509_source(deadline) as source:
                say(describe(source))
        elif command == "jwt":
            say(jwt(deadline, rest[0]))
        elif command == "validate":
            say(validate(deadline, *rest))
        elif command == "bundles":
            say(bundles(deadline))
        elif command == "watch":
            watch(deadline)
        elif command == "serve":
            serve(x509_source(deadline), list(rest))
        elif command == "connect":
            connect(x509_source(deadline))
        else:
            raise SystemExit(__doc__)
    except Exception as error:  # fetch_jwt_svid is not the only call that lets errors of gRPC through
        fail(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
