// A workload written with go-spiffe, as its users write it. It finds the Workload API through SPIFFE_ENDPOINT_SOCKET and
// prints one JSON object a line.
//
//	x509                     who it is
//	jwt AUDIENCE             a token
//	validate AUDIENCE TOKEN  whose token that is; exit code 2 if it is no good
//	bundles                  how many authorities and keys of which trust domains it trusts
//	watch                    the same as x509, again after every update
//	serve PEER_ID...         a mutual TLS server for these peers
//	connect                  a mutual TLS client that obeys lines on standard input
//
// --deadline SECONDS after the command says how long it waits for the first answer. Then it exits with code 3.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	command, args, seconds := arguments(os.Args[1:])
	ctx, cancel := context.WithTimeout(context.Background(), seconds)
	defer cancel()
	switch {
	case command == "x509":
		say(identity(source(ctx)))
	case command == "jwt" && len(args) == 1:
		say(jwt(ctx, args[0]))
	case command == "validate" && len(args) == 2:
		say(validate(ctx, args[0], args[1]))
	case command == "bundles":
		say(bundles(ctx))
	case command == "watch":
		watch(ctx)
	case command == "serve":
		serve(source(ctx), args)
	case command == "connect":
		connect(source(ctx))
	default:
		fail(errors.New("usage: x509|jwt|validate|bundles|watch|serve|connect [--deadline SECONDS] ..."))
	}
}

func arguments(args []string) (string, []string, time.Duration) {
	seconds := 10.0
	if len(args) == 0 {
		return "", nil, 0
	}
	command, args := args[0], args[1:]
	if len(args) > 1 && args[0] == "--deadline" {
		seconds, _ = strconv.ParseFloat(args[1], 64)
		args = args[2:]
	}
	return command, args, time.Duration(seconds * float64(time.Second))
}

// A source retries a denial until the context ends, and then names the context alone. A call that does not retry tells why.
func fail(err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, why := workloadapi.FetchX509SVID(ctx); why != nil {
			err = why
		}
	}
	fmt.Fprintf(os.Stderr, "no identity: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	fmt.Fprintf(os.Stderr, "to learn why, run: countersign explain --pid %d\n", os.Getpid())
	os.Exit(3)
}

type line = map[string]any

func say(value line) {
	text, _ := json.Marshal(value)
	fmt.Println(string(text))
}

func serial(certificate *x509.Certificate) string {
	return fmt.Sprintf("%x", certificate.SerialNumber)
}

func source(ctx context.Context) *workloadapi.X509Source {
	// guide: begin source
	source, err := workloadapi.NewX509Source(ctx) // waits for the first X509-SVID, then keeps itself new
	if err != nil {
		fail(err)
	}
	// guide: end source
	return source
}

func describe(svid *x509svid.SVID, bundles x509bundle.Source) line {
	own, err := bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		fail(err)
	}
	return line{"spiffe_id": svid.ID.String(), "serial": serial(svid.Certificates[0]), "authorities": len(own.X509Authorities())}
}

func identity(source *workloadapi.X509Source) line {
	svid, err := source.GetX509SVID()
	if err != nil {
		fail(err)
	}
	return describe(svid, source)
}

func jwt(ctx context.Context, audience string) line {
	// guide: begin jwt
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		fail(err)
	}
	// guide: end jwt
	return line{"spiffe_id": svid.ID.String(), "token": svid.Marshal()}
}

func validate(ctx context.Context, audience, token string) line {
	// guide: begin validate
	keys, err := workloadapi.NewJWTSource(ctx) // the JWT bundles, kept new; make it once, not for each token
	if err != nil {
		fail(err)
	}
	svid, err := jwtsvid.ParseAndValidate(token, keys, []string{audience})
	// guide: end validate
	if err != nil {
		say(line{"refused": err.Error()})
		os.Exit(2)
	}
	return line{"spiffe_id": svid.ID.String()}
}

func bundles(ctx context.Context) line {
	x509Bundles, err := workloadapi.FetchX509Bundles(ctx)
	if err != nil {
		fail(err)
	}
	jwtBundles, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		fail(err)
	}
	authorities, keys := line{}, line{}
	for _, bundle := range x509Bundles.Bundles() {
		authorities[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	for _, bundle := range jwtBundles.Bundles() {
		keys[bundle.TrustDomain().Name()] = len(bundle.JWTAuthorities())
	}
	return line{"x509": authorities, "jwt": keys}
}

type watcher struct{ first chan struct{} }

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	say(describe(update.DefaultSVID(), update.Bundles))
	select {
	case <-w.first:
	default:
		close(w.first)
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	say(line{"error": err.Error()})
}

func watch(ctx context.Context) {
	watcher := &watcher{first: make(chan struct{})}
	go func() { fail(workloadapi.WatchX509Context(context.Background(), watcher)) }()
	select {
	case <-watcher.first:
		select {}
	case <-ctx.Done():
		fail(ctx.Err())
	}
}

// How long a handshake or an answer may take.
const patience = 10 * time.Second

func serve(source *workloadapi.X509Source, peers []string) {
	// guide: begin server
	var allowed []spiffeid.ID
	for _, peer := range peers {
		allowed = append(allowed, spiffeid.RequireFromString(peer))
	}
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeOneOf(allowed...))
	config.SessionTicketsDisabled = true // Go does not verify the peer of a resumed session again
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	// guide: end server
	if err != nil {
		fail(err)
	}
	say(line{"listening": listener.Addr().(*net.TCPAddr).Port})
	for {
		connection, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		go answer(source, connection.(*tls.Conn))
	}
}

func answer(source *workloadapi.X509Source, connection *tls.Conn) {
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(patience))
	if err := connection.Handshake(); err != nil {
		say(line{"refused": err.Error()})
		return
	}
	_ = connection.SetDeadline(time.Time{})
	peer := connection.ConnectionState().PeerCertificates[0]
	id, _ := x509svid.IDFromCert(peer)
	for lines := bufio.NewScanner(connection); lines.Scan(); {
		mine, err := source.GetX509SVID()
		if err != nil || lines.Text() != "ping" {
			return
		}
		text, _ := json.Marshal(line{"you": id.String(), "your_serial": serial(peer), "my_serial": serial(mine.Certificates[0])})
		if _, err := connection.Write(append(text, '\n')); err != nil {
			return
		}
	}
}

type link struct {
	connection *tls.Conn
	lines      *bufio.Reader
}

func connect(source *workloadapi.X509Source) {
	links := map[string]*link{}
	for commands := bufio.NewScanner(os.Stdin); commands.Scan(); {
		words := append(strings.Fields(commands.Text()), "", "", "", "")
		name, answer, err := words[1], line{}, error(nil)
		switch words[0] {
		case "open":
			answer, links[name], err = open(source, "127.0.0.1:"+words[2], words[3])
			answer["opened"] = name
		case "ping":
			answer, err = links[name].ping()
			answer["via"] = name
		case "close":
			if link := links[name]; link != nil {
				err = link.connection.Close()
			}
			delete(links, name)
			answer["closed"] = name
		case "serial":
			answer["serial"] = identity(source)["serial"]
		case "quit":
			return
		}
		if err != nil {
			answer = line{"failed": name, "error": err.Error()}
		}
		say(answer)
	}
}

func open(source *workloadapi.X509Source, address, peer string) (line, *link, error) {
	// guide: begin client
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromString(peer)))
	connection, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, config)
	// guide: end client
	if err != nil {
		return line{}, nil, err
	}
	certificate := connection.ConnectionState().PeerCertificates[0]
	id, err := x509svid.IDFromCert(certificate)
	return line{"peer": id.String(), "peer_serial": serial(certificate)}, &link{connection, bufio.NewReader(connection)}, err
}

func (l *link) ping() (line, error) {
	answer := line{}
	if l == nil {
		return answer, errors.New("no such connection")
	}
	_ = l.connection.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(l.connection, "ping"); err != nil {
		return answer, err
	}
	text, err := l.lines.ReadBytes('\n')
	if err != nil {
		return answer, err
	}
	return answer, json.Unmarshal(text, &answer)
}
