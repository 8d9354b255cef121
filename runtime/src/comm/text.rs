//! Short texts in memory that other threads and processes may read at any moment.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// At most `8 * WORDS` bytes of UTF-8; longer texts are truncated. A reader during a write gets a mixture, but never
/// undefined behavior; texts of other ranks are only used in messages.
#[repr(C)]
#[derive(Debug)]
pub struct Text<const WORDS: usize> {
    length: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Text<WORDS> {
    /// No text.
    pub const fn new() -> Self {
        Text { length: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORDS] }
    }

    /// Replaces the text. Does not allocate.
    pub fn set(&self, text: &str) {
        let text = cut(text, WORDS * 8);
        for (word, bytes) in self.words.iter().zip(text.as_bytes().chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Relaxed);
        }
        self.length.store(text.len() as u64, Relaxed);
    }

    /// The text.
    pub fn get(&self) -> String {
        let length = (self.length.load(Relaxed) as usize).min(WORDS * 8);
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|w| w.load(Relaxed).to_ne_bytes()).collect();
        bytes.truncate(length);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Copies another text. Does not allocate.
    pub fn copy_from(&self, other: &Self) {
        let length = other.length.load(Relaxed);
        let used = (length as usize).div_ceil(8).min(WORDS);
        for (to, from) in self.words.iter().zip(&other.words).take(used) {
            to.store(from.load(Relaxed), Relaxed);
        }
        self.length.store(length, Relaxed);
    }
}

impl<const WORDS: usize> Default for Text<WORDS> {
    fn default() -> Self {
        Text::new()
    }
}

/// The longest prefix of a text with at most this many bytes, in whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_and_cut_at_characters() {
        let text = Text::<2>::new();
        for (given, kept) in
            [("", ""), ("all_reduce", "all_reduce"), ("0123456789abcdeé", "0123456789abcde"), ("x", "x")]
        {
            text.set(given);
            assert_eq!(text.get(), kept);
            let copy = Text::<2>::new();
            copy.set("something else!!");
            copy.copy_from(&text);
            assert_eq!(copy.get(), kept);
        }
    }
}
