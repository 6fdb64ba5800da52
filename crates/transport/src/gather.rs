//! Writing: what a connection says in one turn goes out at once.
//!
//! HTTP/2 flushes after each DATA frame of some size, because it hands such frames on without copying them. The trailers of
//! an answer then are a second TLS record, a second packet and a second waking of whoever reads, which cost more than the
//! rest of a short call.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that wait: one TLS record. More than that is handed on uncopied.
const WAITING_BYTES_MAX: usize = 16 << 10;

/// A stream whose writes wait for what else is said in the same turn.
#[derive(Debug)]
pub(crate) struct Gathered<S> {
    stream: S,
    /// Empty and without memory while nothing is to be said, since most connections are idle.
    waiting: Vec<u8>,
    /// How many of them have gone out.
    written: usize,
    /// Whether the last write was a frame that is handed on uncopied: after one, HTTP/2 flushes to have room for the next.
    has_frame: bool,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new(), written: 0, has_frame: false }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        (self.waiting, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Whether so many bytes can wait, once those before them have gone out where that is needed.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<bool>> {
        if self.waiting.len() + bytes > WAITING_BYTES_MAX {
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(bytes <= WAITING_BYTES_MAX))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        if !ready!(self.poll_room(cx, bytes))? {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        self.has_frame = bufs.iter().filter(|buf| !buf.is_empty()).count() > 1;
        self.waiting.reserve_exact(bytes);
        for buf in bufs {
            self.waiting.extend_from_slice(buf);
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_frame {
            self.has_frame = false;
            // INVARIANT: whoever is told that all has gone out is called again, and then it has. HTTP/2 ends each turn with
            // a flush, usually this one still.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What was written, write by write, in pieces of at most so many bytes.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>, Option<usize>);

    impl AsyncWrite for Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = self.1.unwrap_or(usize::MAX).min(buf.len());
            self.0.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
            let whole: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            self.poll_write(cx, &whole)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// A stream under test, and how often its task was woken.
    struct Turn(Gathered<Writes>, Arc<Woken>);

    impl Turn {
        fn new(piece: Option<usize>) -> Self {
            Self(Gathered::new(Writes(Vec::new(), piece)), Arc::default())
        }

        fn write(&mut self, slices: &[&[u8]]) -> usize {
            let slices: Vec<_> = slices.iter().map(|s| io::IoSlice::new(s)).collect();
            let waker = Waker::from(Arc::clone(&self.1));
            let Poll::Ready(written) = Pin::new(&mut self.0).poll_write_vectored(&mut Context::from_waker(&waker), &slices) else {
                panic!()
            };
            written.unwrap()
        }

        fn flush(&mut self) {
            let waker = Waker::from(Arc::clone(&self.1));
            assert!(matches!(Pin::new(&mut self.0).poll_flush(&mut Context::from_waker(&waker)), Poll::Ready(Ok(()))));
        }

        fn written(&self) -> Vec<&str> {
            self.0.stream.0.iter().map(|w| str::from_utf8(w).unwrap()).collect()
        }
    }

    #[test]
    fn the_trailers_of_an_answer_go_out_with_it() {
        let mut turn = Turn::new(None);
        turn.write(&[b"headers", b"data"]);
        turn.flush();
        turn.write(&[b"trailers"]);
        turn.flush();
        assert_eq!(turn.written(), ["headersdatatrailers"]);
        assert_eq!(turn.0.waiting.capacity(), 0, "an idle connection holds nothing");
    }

    #[test]
    fn what_is_put_off_wakes_its_task_and_goes_out_then() {
        let mut turn = Turn::new(None);
        turn.write(&[b"headers", b"data"]);
        turn.flush();
        assert_eq!((turn.written().len(), turn.1.0.load(Relaxed)), (0, 1));
        turn.flush();
        assert_eq!(turn.written(), ["headersdata"]);
        turn.write(&[b"ping"]);
        turn.flush();
        assert_eq!((turn.written(), turn.1.0.load(Relaxed)), (vec!["headersdata", "ping"], 1), "what is small is not put off");
    }

    #[test]
    fn no_more_than_a_record_waits_and_the_order_stays() {
        let mut turn = Turn::new(Some(10_000));
        let large = vec![b'l'; WAITING_BYTES_MAX + 1];
        turn.write(&[b"before"]);
        assert_eq!(turn.write(&[b"head", &large]), 10_000, "uncopied, as far as it is taken");
        turn.write(&[&large[..WAITING_BYTES_MAX]]);
        turn.write(&[b"after"]);
        turn.flush();
        let written = turn.written();
        assert_eq!(written.iter().map(|w| w.len()).collect::<Vec<_>>(), [6, 10_000, 10_000, WAITING_BYTES_MAX - 10_000, 5]);
        assert_eq!((written[0], &written[1][..5], written[4]), ("before", "headl", "after"));
    }

    #[tokio::test]
    async fn nothing_is_lost_at_the_end() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut gathered = Gathered::new(near);
        let said = gathered.write_vectored(&[io::IoSlice::new(b"last "), io::IoSlice::new(b"words")]).await.unwrap();
        assert_eq!(said, 10);
        gathered.flush().await.unwrap();
        gathered.shutdown().await.unwrap();
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "last words");
    }
}
