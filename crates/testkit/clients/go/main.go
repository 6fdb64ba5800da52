// A workload written with go-spiffe, as its users write it. Each command prints one line of JSON.
//
//	x509 SOCKET                      waits for an X509-SVID and prints who it is
//	watch SOCKET N                   prints each of the first N X509-SVIDs it is given
//	jwt SOCKET AUDIENCE              fetches a token, validates it by the bundle, and by the agent
//	mtls SOCKET                      talks mutual TLS with itself
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func say(value any) {
	text, _ := json.Marshal(value)
	fmt.Println(string(text))
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: x509|watch|jwt|mtls SOCKET …")
	}
	address := workloadapi.WithAddr(args[1])
	switch args[0] {
	case "x509":
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
		if err != nil {
			return err
		}
		defer source.Close()
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
			return err
		}
		say(map[string]any{"spiffe_id": svid.ID.String(), "hint": svid.Hint, "not_after": svid.Certificates[0].NotAfter.Unix()})
	case "watch":
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		client, err := workloadapi.New(ctx, address)
		if err != nil {
			return err
		}
		defer client.Close()
		inner, stop := context.WithCancel(ctx)
		defer stop()
		watcher := &watcher{left: count, stop: stop}
		if err := client.WatchX509Context(inner, watcher); err != nil && inner.Err() == nil {
			return err
		}
		return ctx.Err()
	case "jwt":
		source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(address))
		if err != nil {
			return err
		}
		defer source.Close()
		svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: args[2]})
		if err != nil {
			return err
		}
		if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{args[2]}); err != nil {
			return err
		}
		checked, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), args[2], address)
		if err != nil {
			return err
		}
		say(map[string]any{"spiffe_id": checked.ID.String(), "token": svid.Marshal()})
	case "mtls":
		return mtls(ctx, address)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
	return nil
}

type watcher struct {
	left int
	stop context.CancelFunc
}

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svid := update.DefaultSVID()
	say(map[string]any{"spiffe_id": svid.ID.String(), "serial": svid.Certificates[0].SerialNumber.String(), "svids": len(update.SVIDs)})
	w.left--
	if w.left <= 0 {
		w.stop()
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, "watch:", err)
}

func mtls(ctx context.Context, address workloadapi.ClientOption) error {
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0",
		spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeAny(), source))
	if err != nil {
		return err
	}
	defer listener.Close()
	peers := make(chan string, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			peers <- err.Error()
			return
		}
		defer connection.Close()
		line, _ := bufio.NewReader(connection).ReadString('\n')
		id, err := spiffetls.PeerIDFromConn(connection.(net.Conn))
		if err != nil {
			peers <- err.Error()
			return
		}
		peers <- id.String() + " says " + line
	}()
	connection, err := spiffetls.DialWithMode(ctx, "tcp", listener.Addr().String(),
		spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeAny(), source))
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := fmt.Fprintln(connection, "hello"); err != nil {
		return err
	}
	say(map[string]any{"server_saw": <-peers})
	return nil
}
