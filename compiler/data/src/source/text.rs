//! Splits a long text into pieces.

/// The end of the first piece of a text that is longer than `limit` bytes: after a blank line in its second half,
/// otherwise after the last line, the last space, or the last complete character.
///
/// `text` has at least `limit` bytes and begins with a complete character.
pub(super) fn end_of_piece(text: &[u8], limit: usize) -> usize {
    let head = text.get(..limit).unwrap_or(text);
    let half = head.len() / 2;
    let after = |at: Option<usize>, len: usize| at.map(|at| at + len).filter(|&end| end > half);
    let blank = after(head.windows(2).rposition(|two| two == b"\n\n"), 2);
    let line = || after(head.iter().rposition(|&b| b == b'\n'), 1);
    // A space belongs to the word after it, as in tokenizers.
    let word = || after(head.iter().rposition(|&b| b == b' '), 0);
    blank.or_else(line).or_else(word).unwrap_or_else(|| whole_characters(head))
}

/// Number of bytes before an incomplete last character.
fn whole_characters(head: &[u8]) -> usize {
    let last = head.iter().rposition(|&b| b & 0xc0 != 0x80).unwrap_or(0);
    match std::str::from_utf8(head.get(last..).unwrap_or_default()) {
        Ok(_) => head.len(),
        // Never 0, because a piece must advance.
        Err(_) if last > 0 => last,
        Err(_) => head.len(),
    }
}

/// The first invalid byte of a UTF-8 text whose bytes begin with a complete character. A character that is cut off at
/// the end is only invalid if `is_end`.
pub(super) fn wrong_byte(bytes: &[u8], is_end: bool) -> Option<usize> {
    match std::str::from_utf8(bytes) {
        Ok(_) => None,
        Err(error) if error.error_len().is_none() && !is_end => None,
        Err(error) => Some(error.valid_up_to()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_a_reader_would_stop() {
        assert_eq!(end_of_piece(b"a word\n\nand more\nx", 12), 8, "after a blank line");
        assert_eq!(end_of_piece(b"a\n\nand more\nx and y", 14), 12, "a blank line in the first half does not count");
        assert_eq!(end_of_piece(b"several words", 10), 7, "before a space");
        assert_eq!(end_of_piece("ααααα".as_bytes(), 7), 6, "between characters");
        assert_eq!(end_of_piece(b"abcdefgh", 4), 4);
    }

    #[test]
    fn a_character_that_is_cut_off_is_wrong_at_the_end_only() {
        assert_eq!(wrong_byte("aé".as_bytes(), true), None);
        assert_eq!(wrong_byte(b"a\xc3", false), None);
        assert_eq!(wrong_byte(b"a\xc3", true), Some(1));
        assert_eq!(wrong_byte(b"ab\xffc", false), Some(2));
    }
}
