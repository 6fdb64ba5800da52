"""A workload written with the SPIFFE client of PyPI, as its users write it. Each command prints one line of JSON.

x509 SOCKET            fetches X509-SVIDs
source SOCKET          the X509Source that keeps itself new
jwt SOCKET AUDIENCE    fetches a token and lets the agent validate it
denied SOCKET          says how a denial looks
"""

import json
import sys

from spiffe import WorkloadApiClient, X509Source


def main(command: str, socket: str, *rest: str) -> None:
    client = WorkloadApiClient(socket)
    if command == "x509":
        svids = client.fetch_x509_svids(timeout=20)
        print(json.dumps({"spiffe_ids": [str(s.spiffe_id) for s in svids], "chain": len(svids[0].cert_chain)}))
    elif command == "source":
        with X509Source(socket_path=socket, timeout_in_seconds=20) as source:
            print(json.dumps({"spiffe_id": str(source.svid.spiffe_id), "bundles": len(source.bundles)}))
    elif command == "jwt":
        svid = client.fetch_jwt_svid(audience={rest[0]}, timeout=20)
        checked = client.validate_jwt_svid(svid.token, audience=rest[0], timeout=20)
        print(json.dumps({"spiffe_id": str(checked.spiffe_id), "audience": sorted(checked.audience)}))
    elif command == "denied":
        try:
            client.fetch_x509_svid(timeout=20)
            print(json.dumps({"denied": None}))
        except Exception as error:  # the library's own error types differ between versions
            print(json.dumps({"denied": str(error)}))
    else:
        raise SystemExit(f"unknown command {command!r}")
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
