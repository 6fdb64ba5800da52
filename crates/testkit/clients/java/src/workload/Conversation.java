package workload;

import static workload.Client.chain;
import static workload.Client.line;
import static workload.Client.say;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.workloadapi.X509Source;
import java.io.BufferedReader;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.cert.X509Certificate;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLServerSocketFactory;
import javax.net.ssl.SSLSocket;

/** Conversations over mutual TLS: the server that answers pings, and the client that obeys lines on standard input. */
final class Conversation {
    /** A peer that connects and says nothing is not waited for any longer. */
    private static final int HANDSHAKE_MILLIS_MAX = 10_000;
    /** Connections served at a time; more wait. */
    private static final int CONNECTIONS_MAX = 64;
    /** Connections that wait to be accepted; more are turned away by the kernel. */
    private static final int BACKLOG_MAX = 64;

    private static final Gson JSON = new Gson();

    private record Connection(SSLSocket socket, BufferedReader lines) {}

    private Conversation() {}

    // guide: begin server
    private static SSLServerSocket listen(X509Source source, Set<SpiffeId> peers) throws Exception {
        InetAddress here = InetAddress.getLoopbackAddress();
        SSLServerSocketFactory sockets = Client.tls(source, peers).getServerSocketFactory();
        SSLServerSocket listener = (SSLServerSocket) sockets.createServerSocket(0, BACKLOG_MAX, here);
        listener.setNeedClientAuth(true);
        return listener;
    }
    // guide: end server

    // guide: begin client
    private static SSLSocket socket(X509Source source, SpiffeId server) throws Exception {
        return (SSLSocket) Client.tls(source, Set.of(server)).getSocketFactory().createSocket();
    }
    // guide: end client

    static void serve(X509Source source, Set<SpiffeId> peers) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(CONNECTIONS_MAX);
        try (SSLServerSocket listener = listen(source, peers)) {
            say(line("listening", listener.getLocalPort()));
            while (true) {
                SSLSocket connection = (SSLSocket) listener.accept();
                threads.execute(() -> answer(connection, source));
            }
        }
    }

    private static void answer(SSLSocket connection, X509Source source) {
        try (connection) {
            connection.setSoTimeout(HANDSHAKE_MILLIS_MAX);
            try {
                connection.startHandshake();
            } catch (IOException refusal) {
                say(line("refused", chain(refusal)));
                return;
            }
            connection.setSoTimeout(0);
            X509Certificate peer = peer(connection);
            BufferedReader lines = lines(connection);
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                if (line.equals("ping")) {
                    Map<String, Object> answer = line(
                            "you", spiffeId(peer).toString(),
                            "your_serial", serial(peer),
                            "my_serial", serial(source.getX509Svid().getLeaf()));
                    write(connection, JSON.toJson(answer));
                }
            }
        } catch (Exception ended) {
            // The connection broke after the handshake; the other end knows as well, and others go on.
            System.err.println(chain(ended));
        }
    }

    static void connect(X509Source source) throws IOException {
        Map<String, Connection> connections = new HashMap<>();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String text = input.readLine(); text != null && !text.equals("quit"); text = input.readLine()) {
            List<String> words = List.of(text.trim().split("\\s+"));
            String name = words.size() > 1 ? words.get(1) : "";
            try {
                switch (words.get(0) + " " + words.size()) {
                    case "serial 1" -> say(line("serial", serial(source.getX509Svid().getLeaf())));
                    case "open 4" -> {
                        SSLSocket socket = open(source, Integer.parseInt(words.get(2)), SpiffeId.parse(words.get(3)));
                        connections.put(name, new Connection(socket, lines(socket)));
                        X509Certificate peer = peer(socket);
                        say(line("opened", name, "peer", spiffeId(peer).toString(), "peer_serial", serial(peer)));
                    }
                    case "ping 2" -> say(ping(connections.get(name), name));
                    case "close 2" -> {
                        Connection connection = connections.remove(name);
                        if (connection != null) {
                            connection.socket().close();
                        }
                        say(line("closed", name));
                    }
                    default -> throw new IllegalArgumentException("`" + text + "` is not known");
                }
            } catch (Exception failure) {
                say(line("failed", name, "error", chain(failure)));
            }
        }
    }

    private static SSLSocket open(X509Source source, int port, SpiffeId server) throws Exception {
        SSLSocket connection = socket(source, server);
        try {
            connection.connect(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), HANDSHAKE_MILLIS_MAX);
            connection.setSoTimeout(HANDSHAKE_MILLIS_MAX);
            connection.startHandshake();
            return connection;
        } catch (IOException failure) {
            connection.close();
            throw failure;
        }
    }

    private static Map<String, Object> ping(Connection connection, String name) throws IOException {
        if (connection == null) {
            throw new IOException("there is no connection of this name");
        }
        write(connection.socket(), "ping");
        String text = connection.lines().readLine();
        if (text == null) {
            throw new EOFException("the peer closed the connection");
        }
        Map<String, Object> answer = JSON.fromJson(text, new TypeToken<LinkedHashMap<String, Object>>() {});
        answer.put("via", name);
        return answer;
    }

    private static X509Certificate peer(SSLSocket connection) throws IOException {
        return (X509Certificate) connection.getSession().getPeerCertificates()[0];
    }

    /** The handshake has verified the certificate; its only URI is the SPIFFE ID. */
    private static SpiffeId spiffeId(X509Certificate certificate) throws Exception {
        for (List<?> name : certificate.getSubjectAlternativeNames()) {
            if (name.get(0).equals(6)) {
                return SpiffeId.parse((String) name.get(1));
            }
        }
        throw new IOException("the peer's certificate has no URI");
    }

    private static String serial(X509Certificate certificate) {
        return certificate.getSerialNumber().toString(16);
    }

    private static BufferedReader lines(SSLSocket connection) throws IOException {
        return new BufferedReader(new InputStreamReader(connection.getInputStream(), StandardCharsets.UTF_8));
    }

    private static void write(SSLSocket connection, String text) throws IOException {
        connection.getOutputStream().write((text + "\n").getBytes(StandardCharsets.UTF_8));
        connection.getOutputStream().flush();
    }
}
