//! Stop texts, which end a generation where one first occurs.

/// The text of one sequence so far, and how much of it may be shown.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    stops: &'a [String],
    text: String,
    /// Number of bytes already shown.
    given: usize,
    ended: bool,
}

impl<'a> Shown<'a> {
    pub(super) fn new(stops: &'a [String]) -> Self {
        Shown { stops, text: String::new(), given: 0, ended: false }
    }

    /// Appends text and returns the part that can now be shown. Text that may be the beginning of a stop text is held
    /// back, and everything from a stop text on is dropped.
    pub(super) fn push(&mut self, more: &str) -> &str {
        if self.ended {
            return "";
        }
        self.text.push_str(more);
        let found = self.stops.iter().filter_map(|stop| self.text.find(stop)).min();
        let until = match found {
            Some(at) => {
                self.ended = true;
                self.text.truncate(at);
                at
            }
            None => self.text.len() - self.held(),
        };
        let from = self.given;
        self.given = until.max(from);
        &self.text[from..self.given]
    }

    /// Number of bytes at the end that may be the beginning of a stop text.
    fn held(&self) -> usize {
        let begins = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).rev();
            lengths.filter(|length| *length > 0).find(|length| self.text.ends_with(&stop[..*length]))
        };
        self.stops.iter().filter_map(begins).max().unwrap_or(0)
    }

    /// Whether a stop text has occurred.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Returns the text that was held back, once the text is complete.
    pub(super) fn finish(&mut self) -> &str {
        let from = std::mem::replace(&mut self.given, self.text.len());
        &self.text[from..]
    }

    /// The whole text, without the stop text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text shown after each piece, and the text that is held back at the end.
    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut shown = Shown::new(&stops);
        let given: Vec<String> = pieces.iter().map(|piece| shown.push(piece).to_string()).collect();
        let rest = shown.finish().to_string();
        assert_eq!(given.concat() + &rest, shown.text());
        (given, rest, shown.ended())
    }

    fn given(pieces: &[&str]) -> Vec<String> {
        pieces.iter().map(|piece| piece.to_string()).collect()
    }

    #[test]
    fn nothing_of_a_stop_text_is_shown() {
        assert_eq!(
            shown(&["\n\n"], &["one\n", "two", "\n", "\nthree"]),
            (given(&["one", "\ntwo", "", ""]), "".into(), true)
        );
        assert_eq!(shown(&["END"], &["a E", "N", "x"]), (given(&["a ", "", "ENx"]), "".into(), false));
        assert_eq!(shown(&["END"], &["a EN"]), (given(&["a "]), "EN".into(), false));
        assert_eq!(shown(&["b", "ab"], &["xab", "y"]), (given(&["x", ""]), "".into(), true));
        assert_eq!(shown(&[], &["a", "é"]), (given(&["a", "é"]), "".into(), false));
        // The earliest of overlapping beginnings is held back, in whole characters.
        assert_eq!(shown(&["éé!", "é?"], &["xéé", "é", "?"]), (given(&["x", "é", "é"]), "".into(), true));
    }
}
