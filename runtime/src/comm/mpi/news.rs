//! What processes tell each other at any time: that one has failed, leaves, or is busy. One receive stands for it always; whoever waits,
//! and a thread with a slow beat, looks whether something has come.

use super::library::{Channel, Library, Requests};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};

/// Bytes of a message, small enough for MPI to take it without the receiver's help.
const LONGEST: usize = 2048;

/// A message of one process to all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A rank has failed, and why.
    Failed(usize, String),
    /// The process has nothing more to say, and ends.
    Leaves,
    /// The process does something that takes its time, and so many hundredths of a second of a processor's.
    Busy(u64),
}

impl News {
    fn encode(&self) -> Vec<u8> {
        match self {
            News::Failed(rank, reason) => {
                let reason = &reason[..reason.floor_char_boundary(LONGEST - 9)];
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

/// What is known of another process.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) has_left: AtomicBool,
    /// Processor time that it has used, in hundredths of a second, and much more where it said itself that it is busy.
    pub(super) progress: AtomicU64,
}

/// The standing receive: a length, the sender, and the message.
struct Inbox {
    message: Box<[u8; HEAD + LONGEST]>,
    standing: Requests,
}

/// Length and sender, two words.
const HEAD: usize = 16;

/// Messages that are being sent, each with its bytes.
type Outbox = Vec<(Box<[u8; HEAD + LONGEST]>, Requests)>;

/// The post office of a process.
pub(super) struct Post {
    inbox: Mutex<Inbox>,
    outbox: Mutex<Outbox>,
}

impl Post {
    /// Begins to listen.
    ///
    /// # Errors
    /// What MPI says.
    pub(super) fn new(library: &Library) -> Result<Self, String> {
        let mut inbox = Inbox { message: Box::new([0; HEAD + LONGEST]), standing: Requests::new() };
        stand(library, &mut inbox)?;
        Ok(Post { inbox: Mutex::new(inbox), outbox: Mutex::default() })
    }

    /// Sends news to all other processes. It is under way when this returns.
    pub(super) fn tell(&self, library: &Library, news: &News) {
        let bytes = news.encode();
        let mut message = Box::new([0; HEAD + LONGEST]);
        message[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        message[8..HEAD].copy_from_slice(&(library.rank() as u64).to_le_bytes());
        message[HEAD..HEAD + bytes.len()].copy_from_slice(&bytes);
        let mut requests = Requests::new();
        for peer in (0..library.world()).filter(|&peer| peer != library.rank()) {
            // SAFETY: the outbox keeps the message until it is sent. Whoever cannot be reached is missed elsewhere.
            let _ =
                unsafe { library.send(Channel::News, peer, 0, message.as_ptr(), HEAD + bytes.len(), &mut requests) };
        }
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).push((message, requests));
    }

    /// Whether all that was told has been sent.
    pub(super) fn is_sent(&self, library: &Library) -> bool {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.retain_mut(|(_, requests)| {
            // One that went wrong is not sent again.
            let _ = library.test(requests);
            requests.left() > 0
        });
        outbox.is_empty()
    }

    /// Takes what has come, with its sender; nothing if another thread does it just now.
    pub(super) fn listen(&self, library: &Library, mut take: impl FnMut(usize, News)) {
        let Ok(mut inbox) = self.inbox.try_lock() else { return };
        while library.test(&mut inbox.standing).is_ok() && inbox.standing.left() == 0 {
            let word = |at: usize| inbox.message[at..].first_chunk().map_or(0, |w| u64::from_le_bytes(*w) as usize);
            let (length, sender) = (word(0).min(LONGEST), word(8));
            if let (Some(news), true) = (News::decode(&inbox.message[HEAD..HEAD + length]), sender < library.world()) {
                take(sender, news);
            }
            inbox.standing.clear();
            if stand(library, &mut inbox).is_err() {
                return;
            }
        }
    }

    /// Ends MPI.
    pub(super) fn finalize(&self, library: &Library) {
        library.finalize(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner).standing);
    }
}

fn stand(library: &Library, inbox: &mut Inbox) -> Result<(), String> {
    let Inbox { message, standing } = inbox;
    // SAFETY: the inbox lives as long as MPI is open, and is only read when the message has come.
    unsafe { library.receive(Channel::News, None, 0, message.as_mut_ptr(), message.len(), standing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_what_they_were() {
        for news in [News::Failed(3, "it did".into()), News::Leaves, News::Busy(7)] {
            assert_eq!(News::decode(&news.encode()), Some(news));
        }
        let long = News::Failed(0, "é".repeat(LONGEST)).encode();
        assert!(long.len() <= LONGEST);
        assert!(matches!(News::decode(&long), Some(News::Failed(0, text)) if text.starts_with("éé")));
        assert_eq!(News::decode(&[]), None);
        assert_eq!(News::decode(&[0, 1]), None);
        assert_eq!(News::decode(&[9]), None);
    }
}
