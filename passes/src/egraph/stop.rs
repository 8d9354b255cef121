//! Why a search ended.

/// Why the rules were no longer applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// They found nothing more.
    #[default]
    Saturated,
    /// So many rounds were made.
    Rounds(usize),
    /// There are so many e-nodes.
    Nodes(usize),
    /// So many terms had a rule applied to them.
    Applications(usize),
}

impl Stop {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Saturated => "saturated",
            Stop::Rounds(_) => "rounds",
            Stop::Nodes(_) => "nodes",
            Stop::Applications(_) => "applications",
        }
    }

    /// The bound that was reached, in words.
    pub(super) fn bound(self) -> Option<String> {
        match self {
            Stop::Saturated => None,
            Stop::Rounds(n) => Some(counted(n, "round")),
            Stop::Nodes(n) => Some(counted(n, "e-node")),
            Stop::Applications(n) => Some(counted(n, "application") + " of rules"),
        }
    }
}

/// Why extraction ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extraction {
    /// No change that it looks for made the program cheaper.
    #[default]
    Settled,
    /// So many rounds of changes were made.
    Rounds(usize),
    /// So many classes were looked at.
    Moves(usize),
}

impl Extraction {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Extraction::Settled => "settled",
            Extraction::Rounds(_) => "rounds",
            Extraction::Moves(_) => "moves",
        }
    }

    /// The bound that was reached, in words.
    pub(super) fn bound(self) -> Option<String> {
        match self {
            Extraction::Settled => None,
            Extraction::Rounds(n) => Some(counted(n, "round") + " of extraction"),
            Extraction::Moves(n) => Some(counted(n, "look") + " of extraction"),
        }
    }
}

fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
