//! Messages that processes send each other at any time: that one has failed, leaves, or is busy. One receive is always
//! pending. Threads that wait for other messages poll it, and so does the listening thread at long intervals.

use super::library::{Channel, Library, Requests};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};

/// Maximum number of bytes in a message, small enough for MPI to send it eagerly.
const MAX_BYTES: usize = 2048;

/// A message from one process to all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A rank has failed, for the given reason.
    Failed(usize, String),
    /// The process ends and sends no further messages.
    Leaves,
    /// The process is busy with work that takes long. It has used the given CPU time, in hundredths of a second, since
    /// the last report.
    Busy(u64),
}

impl News {
    fn encode(&self) -> Vec<u8> {
        match self {
            News::Failed(rank, reason) => {
                let reason = &reason[..reason.floor_char_boundary(MAX_BYTES - 9)];
                [&[0], &(*rank as u64).to_le_bytes()[..], reason.as_bytes()].concat()
            }
            News::Leaves => vec![1],
            News::Busy(time) => [&[2], &time.to_le_bytes()[..]].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (0, rest) => {
                let (rank, reason) = rest.split_first_chunk::<8>()?;
                let reason = String::from_utf8_lossy(reason).into_owned();
                Some(News::Failed(u64::from_le_bytes(*rank) as usize, reason))
            }
            (1, _) => Some(News::Leaves),
            (2, rest) => Some(News::Busy(u64::from_le_bytes(*rest.first_chunk()?))),
            _ => None,
        }
    }
}

/// What is known about another process.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) has_left: AtomicBool,
    /// CPU time that it has used, in hundredths of a second, plus a large amount for every explicit report that it is
    /// busy.
    pub(super) progress: AtomicU64,
}

/// The pending receive and its buffer: a length, the sender, and the message.
struct Inbox {
    message: Box<[u8; HEAD + MAX_BYTES]>,
    receives: Requests,
}

/// Size of the length and the sender.
const HEAD: usize = 16;

/// Messages that are being sent, with their buffers.
type Outbox = Vec<(Box<[u8; HEAD + MAX_BYTES]>, Requests)>;

/// Sends and receives the news of a process.
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    outbox: Mutex<Outbox>,
}

impl Mailbox {
    /// Starts to receive news.
    ///
    /// # Errors
    /// The error that MPI reports.
    pub(super) fn new(library: &Library) -> Result<Self, String> {
        let mut inbox = Inbox { message: Box::new([0; HEAD + MAX_BYTES]), receives: Requests::new() };
        start_receive(library, &mut inbox)?;
        Ok(Mailbox { inbox: Mutex::new(inbox), outbox: Mutex::default() })
    }

    /// Starts to send news to all other processes.
    pub(super) fn tell(&self, library: &Library, news: &News) {
        let bytes = news.encode();
        let mut message = Box::new([0; HEAD + MAX_BYTES]);
        message[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        message[8..HEAD].copy_from_slice(&(library.rank() as u64).to_le_bytes());
        message[HEAD..HEAD + bytes.len()].copy_from_slice(&bytes);
        let mut requests = Requests::new();
        for peer in (0..library.world()).filter(|&peer| peer != library.rank()) {
            // SAFETY: the outbox keeps the message until it is sent. Errors are ignored: an unreachable process is
            // detected elsewhere.
            let _ =
                unsafe { library.send(Channel::News, peer, 0, message.as_ptr(), HEAD + bytes.len(), &mut requests) };
        }
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).push((message, requests));
    }

    /// Whether all news has been sent.
    pub(super) fn is_sent(&self, library: &Library) -> bool {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.retain_mut(|(_, requests)| {
            // A failed message is not sent again.
            let _ = library.test(requests);
            requests.left() > 0
        });
        outbox.is_empty()
    }

    /// Passes all news that has arrived to `handle`, with its sender. Does nothing if another thread is doing so at this
    /// moment.
    pub(super) fn listen(&self, library: &Library, mut handle: impl FnMut(usize, News)) {
        let Ok(mut inbox) = self.inbox.try_lock() else { return };
        while library.test(&mut inbox.receives).is_ok() && inbox.receives.left() == 0 {
            let word = |at: usize| inbox.message[at..].first_chunk().map_or(0, |w| u64::from_le_bytes(*w) as usize);
            let (length, sender) = (word(0).min(MAX_BYTES), word(8));
            if let (Some(news), true) = (News::decode(&inbox.message[HEAD..HEAD + length]), sender < library.world()) {
                handle(sender, news);
            }
            inbox.receives.clear();
            if start_receive(library, &mut inbox).is_err() {
                return;
            }
        }
    }

    /// Finalizes MPI.
    pub(super) fn finalize(&self, library: &Library) {
        library.finalize(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner).receives);
    }
}

fn start_receive(library: &Library, inbox: &mut Inbox) -> Result<(), String> {
    let Inbox { message, receives } = inbox;
    // SAFETY: the inbox lives as long as MPI is open, and is read only after the message has arrived.
    unsafe { library.receive(Channel::News, None, 0, message.as_mut_ptr(), message.len(), receives) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_round_trips() {
        for news in [News::Failed(3, "it did".into()), News::Leaves, News::Busy(7)] {
            assert_eq!(News::decode(&news.encode()), Some(news));
        }
        let long = News::Failed(0, "é".repeat(MAX_BYTES)).encode();
        assert!(long.len() <= MAX_BYTES);
        assert!(matches!(News::decode(&long), Some(News::Failed(0, text)) if text.starts_with("éé")));
        assert_eq!(News::decode(&[]), None);
        assert_eq!(News::decode(&[0, 1]), None);
        assert_eq!(News::decode(&[9]), None);
    }
}
