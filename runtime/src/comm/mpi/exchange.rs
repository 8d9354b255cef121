//! An exchange of bytes between the hosts of all processes. Each host sends every other host a header with the purpose
//! and the length, and then the bytes.

use super::library::{Channel, Requests};
use super::process::Mpi;
use super::wait::Awaited;
use crate::error::RuntimeError;

/// Tags of the channel of the hosts.
const HEADERS: i32 = 0;
const BYTES: i32 = 1;

/// Size of the purpose in a header. The number of the exchange and the length precede it.
const PURPOSE: usize = 112;
const HEADER: usize = 16 + PURPOSE;

/// One exchange, from the point of view of this process. It must not move until all its messages are finished.
pub(super) struct Exchange<'a> {
    mpi: &'a Mpi,
    purpose: &'a str,
    round: u64,
    header: [u8; HEADER],
    headers: Vec<[u8; HEADER]>,
    bytes: Vec<u8>,
    /// The bytes that each process has sent.
    pub messages: Vec<Vec<u8>>,
    sends: Requests,
    /// A header from each other process.
    header_receives: Requests,
    /// The bytes from the other processes, which `senders` lists.
    byte_receives: Requests,
    senders: Vec<usize>,
    compared: bool,
}

impl<'a> Exchange<'a> {
    /// An exchange with the given number in this world.
    pub fn new(mpi: &'a Mpi, purpose: &'a str, round: u64, bytes: &[u8]) -> Self {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&round.to_le_bytes());
        header[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let short = &purpose[..purpose.floor_char_boundary(PURPOSE)];
        header[16..16 + short.len()].copy_from_slice(short.as_bytes());
        let (headers, messages) = (vec![[0; HEADER]; mpi.world()], vec![Vec::new(); mpi.world()]);
        let (sends, header_receives, byte_receives) = (Requests::new(), Requests::new(), Requests::new());
        let (senders, compared) = (Vec::new(), false);
        let bytes = bytes.to_vec();
        Exchange {
            mpi,
            purpose,
            round,
            header,
            headers,
            bytes,
            messages,
            sends,
            header_receives,
            byte_receives,
            senders,
            compared,
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.mpi.rank();
        (0..self.mpi.world()).filter(move |&p| p != me)
    }

    fn transport_error(&self, reason: String) -> RuntimeError {
        RuntimeError::Transport { rank: self.mpi.rank(), operation: self.operation(), reason }
    }

    /// Sends everything, and starts to receive the headers of the others. From now on the exchange must not move.
    pub fn begin(&mut self) -> Result<(), RuntimeError> {
        let library = self.mpi.library();
        for peer in self.others() {
            // SAFETY: all buffers belong to this exchange, which is kept until all messages are finished, or leaked.
            let begun = unsafe {
                let header = self.headers[peer].as_mut_ptr();
                library
                    .receive(Channel::Hosts, Some(peer), HEADERS, header, HEADER, &mut self.header_receives)
                    .and_then(|()| {
                        library.send(Channel::Hosts, peer, HEADERS, self.header.as_ptr(), HEADER, &mut self.sends)
                    })
                    .and_then(|()| {
                        let (bytes, length) = (self.bytes.as_ptr(), self.bytes.len());
                        library.send(Channel::Hosts, peer, BYTES, bytes, length, &mut self.sends)
                    })
            };
            begun.map_err(|e| self.transport_error(e))?;
        }
        Ok(())
    }

    /// Compares the headers and starts to receive the bytes.
    fn receive(&mut self) -> Result<(), RuntimeError> {
        let text = |header: &[u8; HEADER]| String::from_utf8_lossy(&header[16..]).trim_end_matches('\0').to_string();
        for peer in self.others() {
            let theirs = self.headers[peer];
            if theirs[16..] != self.header[16..] || theirs[..8] != self.header[..8] {
                let round = u64::from_le_bytes(theirs[..8].try_into().unwrap_or_default());
                let theirs = format!("`{}`", text(&theirs));
                let theirs = if round == self.round { theirs } else { format!("{theirs}, exchange {round}") };
                let mine = format!("`{}`", self.purpose);
                let mine = if round == self.round { mine } else { format!("{mine}, exchange {}", self.round) };
                return Err(RuntimeError::Desynchronized { rank: self.mpi.rank(), mine, peer, theirs });
            }
        }
        for peer in self.others() {
            let length = u64::from_le_bytes(self.headers[peer][8..16].try_into().unwrap_or_default()) as usize;
            self.messages[peer] = vec![0; length];
            let to = self.messages[peer].as_mut_ptr();
            let library = self.mpi.library();
            // SAFETY: as in `begin`.
            let begun =
                unsafe { library.receive(Channel::Hosts, Some(peer), BYTES, to, length, &mut self.byte_receives) };
            begun.map_err(|e| self.transport_error(e))?;
            self.senders.resize(self.byte_receives.len(), peer);
        }
        self.messages[self.mpi.rank()] = std::mem::take(&mut self.bytes);
        Ok(())
    }
}

impl Awaited for Exchange<'_> {
    fn poll(&mut self) -> Result<bool, RuntimeError> {
        let library = self.mpi.library();
        let tested = library.test(&mut self.header_receives).and_then(|()| library.test(&mut self.sends));
        tested.map_err(|e| self.transport_error(e))?;
        if !self.compared && self.header_receives.left() == 0 {
            self.compared = true;
            self.receive()?;
        }
        // After the headers, so that the same poll receives bytes that have already arrived.
        library.test(&mut self.byte_receives).map_err(|e| self.transport_error(e))?;
        Ok(self.compared && self.byte_receives.left() == 0 && self.sends.left() == 0)
    }

    fn operation(&self) -> String {
        format!("`{}`", self.purpose)
    }

    fn missing(&self) -> Vec<usize> {
        let unheard =
            self.others().enumerate().filter(|(at, _)| !self.header_receives.is_finished(*at)).map(|(_, p)| p);
        let silent: Vec<usize> = unheard.collect();
        if !silent.is_empty() {
            return silent;
        }
        let byte_receives =
            (0..self.byte_receives.len()).filter(|&at| !self.byte_receives.is_finished(at)).map(|at| self.senders[at]);
        let slow: Vec<usize> = byte_receives.collect();
        if slow.is_empty() { self.others().collect() } else { slow }
    }

    fn is_patient(&self) -> bool {
        true
    }
}
