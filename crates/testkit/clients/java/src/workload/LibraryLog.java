package workload;

import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;

/**
 * The library retries in silence: why the last attempt failed it says in its log alone. This keeps the last reason, and
 * keeps stack traces off standard error.
 */
final class LibraryLog extends Handler {
    // Held here, because the logging system forgets loggers that nobody holds.
    private static final Logger LIBRARY = Logger.getLogger("io.spiffe");
    private static volatile String last = "";
    private static volatile boolean tells;

    private LibraryLog() {}

    static void listen() {
        LIBRARY.setUseParentHandlers(false);
        LIBRARY.addHandler(new LibraryLog());
    }

    /** From now on each failure is a line of output as well. */
    static void tell() {
        tells = true;
    }

    /** What the last failed attempt ended with, to be put behind a message. */
    static String lastReason() {
        return last.isEmpty() ? "" : ": " + last;
    }

    @Override
    public void publish(LogRecord record) {
        if (record.getThrown() == null || record.getLevel().intValue() < Level.WARNING.intValue()) {
            return;
        }
        last = Client.chain(record.getThrown());
        if (tells) {
            Client.say(Client.line("error", last));
        }
    }

    @Override
    public void flush() {}

    @Override
    public void close() {}
}
