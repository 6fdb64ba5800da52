package workload;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import io.spiffe.bundle.jwtbundle.JwtBundle;
import io.spiffe.bundle.x509bundle.X509Bundle;
import io.spiffe.exception.AuthorityNotFoundException;
import io.spiffe.exception.BundleNotFoundException;
import io.spiffe.exception.JwtSourceException;
import io.spiffe.exception.JwtSvidException;
import io.spiffe.exception.SocketEndpointAddressException;
import io.spiffe.exception.X509SourceException;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultWorkloadApiClient.ClientOptions;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.DefaultX509Source.X509SourceOptions;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.JwtSourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import io.spiffe.workloadapi.X509Source;
import io.spiffe.workloadapi.retry.ExponentialBackoffPolicy;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.net.ssl.SSLContext;

/**
 * A workload written with java-spiffe, as its users write it. See docs/guides/java.md.
 *
 * <p>{@code x509 | jwt AUDIENCE | validate AUDIENCE TOKEN | bundles | watch | serve PEER_ID… | connect}
 *
 * <p>{@code --deadline SECONDS} may follow the command. Each answer is one JSON object on a line of standard output.
 */
public final class Client {
    /** The library waits up to a minute between two attempts, which a new identity would then have to wait. */
    private static final Duration RETRY_MAX = Duration.ofSeconds(2);

    private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().serializeNulls().create();

    private Client() {}

    // guide: begin source
    /** Waits for the first X509-SVID. Without a time limit a denial is retried for ever. */
    static X509Source x509Source(WorkloadApiClient client, Duration deadline)
            throws SocketEndpointAddressException, X509SourceException {
        X509Source source = DefaultX509Source.newSource(
                X509SourceOptions.builder().workloadApiClient(client).initTimeout(deadline).build());
        // The library also returns when the first answer was of no use; then this throws.
        source.getX509Svid();
        return source;
    }
    // guide: end source

    // guide: begin tls
    static SSLContext tls(X509Source source, Set<SpiffeId> peers) throws GeneralSecurityException {
        // A resumed session is not checked again. Tickets outlive the timeouts below; without tickets these count.
        System.setProperty("jdk.tls.server.enableSessionTicketExtension", "false");
        SSLContext tls = SpiffeSslContextFactory.getSslContext(SslContextOptions.builder()
                .sslProtocol("TLSv1.3").x509Source(source).acceptedSpiffeIdsSupplier(() -> peers).build());
        tls.getServerSessionContext().setSessionTimeout(1);
        tls.getClientSessionContext().setSessionTimeout(1);
        return tls;
    }
    // guide: end tls

    // guide: begin jwt
    static JwtSvid token(JwtSource source, String audience) throws JwtSvidException {
        return source.fetchJwtSvid(audience);
    }
    // guide: end jwt

    // guide: begin validate
    static JwtSvid validate(JwtSource source, String audience, String token)
            throws JwtSvidException, BundleNotFoundException, AuthorityNotFoundException {
        return JwtSvid.parseAndValidate(token, source, Set.of(audience));
    }
    // guide: end validate

    public static void main(String[] args) {
        List<String> words = new ArrayList<>(List.of(args));
        int code;
        try {
            code = run(words, takeDeadline(words));
        } catch (Exception failure) {
            System.err.println(chain(failure) + LibraryLog.lastReason());
            System.err.println("to learn why, run: countersign explain --pid " + ProcessHandle.current().pid());
            code = 3;
        }
        // The library's threads would keep the process alive.
        System.exit(code);
    }

    private static int run(List<String> words, Duration deadline) throws Exception {
        String usage = "usage: x509 | jwt AUDIENCE | validate AUDIENCE TOKEN | bundles | watch | serve PEER_ID… | connect";
        String command = words.isEmpty() ? "" : words.get(0);
        int needed = Map.of("jwt", 2, "validate", 3).getOrDefault(command, 1);
        if (words.size() < needed) {
            throw new IllegalArgumentException(usage);
        }
        LibraryLog.listen();
        WorkloadApiClient client = DefaultWorkloadApiClient.newClient(ClientOptions.builder()
                .exponentialBackoffPolicy(ExponentialBackoffPolicy.builder().maxDelay(RETRY_MAX).build()).build());
        switch (command) {
            case "x509" -> {
                X509Source source = x509Source(client, deadline);
                X509Svid svid = source.getX509Svid();
                X509Bundle own = source.getBundleForTrustDomain(svid.getSpiffeId().getTrustDomain());
                say(update(svid, own.getX509Authorities().size()));
            }
            case "jwt" -> {
                JwtSource source = jwtSource(client, deadline);
                JwtSvid svid = within(deadline, () -> token(source, words.get(1)));
                say(line("spiffe_id", svid.getSpiffeId().toString(), "token", svid.getToken()));
            }
            case "validate" -> {
                JwtSource source = jwtSource(client, deadline);
                try {
                    JwtSvid svid = validate(source, words.get(1), words.get(2));
                    say(line("spiffe_id", svid.getSpiffeId().toString()));
                } catch (JwtSvidException | BundleNotFoundException | AuthorityNotFoundException
                        | IllegalArgumentException refusal) {
                    say(line("refused", chain(refusal)));
                    return 2;
                }
            }
            case "bundles" -> {
                // The source waits for an identity; the two calls take all bundles, not one by its name.
                jwtSource(client, deadline);
                Map<String, Integer> x509 = new TreeMap<>();
                for (X509Bundle bundle : within(deadline, client::fetchX509Bundles).getBundles().values()) {
                    x509.put(bundle.getTrustDomain().toString(), bundle.getX509Authorities().size());
                }
                Map<String, Integer> jwt = new TreeMap<>();
                for (JwtBundle bundle : within(deadline, client::fetchJwtBundles).getBundles().values()) {
                    jwt.put(bundle.getTrustDomain().toString(), bundle.getJwtAuthorities().size());
                }
                say(line("x509", x509, "jwt", jwt));
            }
            case "watch" -> watch(client, deadline);
            case "serve" -> {
                Set<SpiffeId> peers = words.stream().skip(1).map(SpiffeId::parse).collect(Collectors.toSet());
                X509Source source = x509Source(client, deadline);
                Conversation.serve(source, peers);
            }
            case "connect" -> Conversation.connect(x509Source(client, deadline));
            default -> throw new IllegalArgumentException(usage);
        }
        return 0;
    }

    private static JwtSource jwtSource(WorkloadApiClient client, Duration deadline)
            throws SocketEndpointAddressException, JwtSourceException {
        return DefaultJwtSource.newSource(
                JwtSourceOptions.builder().workloadApiClient(client).initTimeout(deadline).build());
    }

    private static void watch(WorkloadApiClient client, Duration deadline) throws Exception {
        CountDownLatch first = new CountDownLatch(1);
        client.watchX509Context(new Watcher<X509Context>() {
            @Override
            public void onUpdate(X509Context update) {
                X509Svid svid = update.getDefaultSvid();
                X509Bundle own = update.getX509BundleSet().getBundles().get(svid.getSpiffeId().getTrustDomain());
                say(update(svid, own == null ? 0 : own.getX509Authorities().size()));
                first.countDown();
            }

            @Override
            public void onError(Throwable failure) {
                say(line("error", chain(failure)));
            }
        });
        if (!first.await(deadline.toMillis(), TimeUnit.MILLISECONDS)) {
            throw new TimeoutException("no X509-SVID within " + deadline.toSeconds() + " s");
        }
        LibraryLog.tell();
        new CountDownLatch(1).await();
    }

    /** Takes {@code --deadline SECONDS} out of the arguments; the library counts in whole seconds. */
    private static Duration takeDeadline(List<String> words) {
        int at = words.indexOf("--deadline");
        if (at < 0) {
            return Duration.ofSeconds(10);
        }
        if (at + 1 == words.size()) {
            throw new IllegalArgumentException("`--deadline` needs a number of seconds");
        }
        Duration deadline = Duration.ofSeconds((long) Math.ceil(Double.parseDouble(words.get(at + 1))));
        words.subList(at, at + 2).clear();
        return deadline;
    }

    /** The library's single calls have no deadline of their own. */
    private static <T> T within(Duration deadline, Callable<T> call) throws Exception {
        FutureTask<T> task = new FutureTask<>(call);
        new Thread(task).start();
        try {
            return task.get(deadline.toMillis(), TimeUnit.MILLISECONDS);
        } catch (ExecutionException failure) {
            throw failure.getCause() instanceof Exception cause ? cause : failure;
        }
    }

    static Map<String, Object> update(X509Svid svid, int authorities) {
        String serial = svid.getLeaf().getSerialNumber().toString(16);
        return line("spiffe_id", svid.getSpiffeId().toString(), "serial", serial, "authorities", authorities);
    }

    /** Errors hide their causes in a chain; this is the chain in one line. */
    static String chain(Throwable failure) {
        return Stream.iterate(failure, cause -> cause != null, Throwable::getCause)
                .map(cause -> cause.getMessage() == null ? cause.getClass().getSimpleName() : cause.getMessage())
                .distinct().collect(Collectors.joining(": ")).replace('\n', ' ');
    }

    static Map<String, Object> line(Object... namesAndValues) {
        Map<String, Object> line = new LinkedHashMap<>();
        for (int i = 0; i < namesAndValues.length; i += 2) {
            line.put((String) namesAndValues[i], namesAndValues[i + 1]);
        }
        return line;
    }

    static synchronized void say(Map<String, Object> line) {
        System.out.println(JSON.toJson(line));
        System.out.flush();
    }
}
