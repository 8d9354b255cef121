//! The numbers by which rules are known: in the table of `RULES.md`, on the command line, in reports and in the reasons of
//! printed programs.

use std::fmt;

/// The number of a rule that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub(super) u8);

impl RuleId {
    /// The rule that splits an all-reduce into a reduce-scatter and an all-gather. It is off by default.
    pub const SPLIT: RuleId = RuleId(1);
    /// The rule that reduces along a fast axis before a slow one. Where all links are alike, it never applies.
    pub const HIERARCHICAL: RuleId = RuleId(25);

    /// All rules, by number.
    pub fn all() -> impl Iterator<Item = RuleId> {
        (1..=26).filter(|&number| number != 21).map(RuleId)
    }

    /// The number.
    pub fn number(self) -> u32 {
        u32::from(self.0)
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that no rule has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRule(pub u32);

impl fmt::Display for UnknownRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<String> = RuleId::all().map(|rule| rule.to_string()).collect();
        write!(f, "there is no rule {}; there are {}", self.0, known.join(", "))
    }
}

impl std::error::Error for UnknownRule {}

impl TryFrom<u32> for RuleId {
    type Error = UnknownRule;

    fn try_from(number: u32) -> Result<Self, UnknownRule> {
        RuleId::all().find(|rule| rule.number() == number).ok_or(UnknownRule(number))
    }
}
