//! Whether a plan treats all elements of a list of modules alike, so that a model with few of them shows what it does.
//!
//! A plan names modules and parameters by patterns, which may tell the elements of a list apart: `layers.3.mlp` or
//! `layers.[0-7].mlp`. So each pattern is tried on the paths of all elements.

use super::pattern::Pattern;
use super::plan::Plan;
use super::stored::StoredInputs;
use tpc_ir::ModulePath;

impl Plan {
    /// Whether the plan, and `further` patterns, treat all paths of a group alike, for each of some groups.
    pub fn treats_alike(&self, further: &[&str], groups: &[Vec<ModulePath>]) -> bool {
        if self.styles.iter().any(|entry| entry.style.may_tell_paths_apart()) {
            return false;
        }
        let stored = self.storage.iter().filter_map(|entry| match &entry.inputs {
            StoredInputs::Parameters(pattern) | StoredInputs::States(pattern) => Some(pattern.as_str()),
            StoredInputs::Data(_) => None,
        });
        let styled = self.styles.iter().map(|entry| entry.path.as_str());
        styled.chain(stored).chain(further.iter().copied()).all(|pattern| {
            // A text that is not a pattern is an error of the plan, which is found elsewhere.
            let Ok(pattern) = Pattern::new(pattern) else { return false };
            groups.iter().all(|paths| {
                let mut matched = paths.iter().map(|path| pattern.matches(path));
                let first = matched.next();
                matched.all(|one| Some(one) == first)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::styles::{ColwiseParallel, ParallelStyle};

    #[test]
    fn a_pattern_that_names_an_element_tells_it_apart() {
        let layers = |part: &str| (0..40).map(|i| ModulePath::from(format!("layers.{i}{part}").as_str())).collect();
        let groups: Vec<Vec<ModulePath>> = vec![layers(""), layers(".mlp.w1"), layers(".mlp.w2"), vec!["norm".into()]];
        for (pattern, alike) in [
            ("", true),
            ("layers.*.mlp.w1", true),
            ("layers.*.mlp.w[12]", true),
            ("*.*.mlp.{w1,w2}", true),
            ("norm", true),
            ("layers.7.mlp.w1", false),
            ("layers.[0-3].mlp.w1", false),
            ("layers.?.mlp.w1", false),
            ("layers.*9.mlp.w1", false),
            ("layers.[!0]*.mlp.w1", false),
            ("layers.{0,1}.mlp.w1", false),
            ("layers.{0,*}.mlp.w1", true),
            ("layers.40.mlp.w1", true),
            ("[", false),
        ] {
            assert_eq!(
                Plan::new().with(pattern, ColwiseParallel::default()).treats_alike(&[], &groups),
                alike,
                "{pattern}"
            );
            assert_eq!(Plan::new().treats_alike(&[pattern], &groups), alike, "{pattern}");
        }
    }

    #[test]
    fn a_style_of_a_user_may_tell_paths_apart() {
        #[derive(Debug)]
        struct Own;
        impl ParallelStyle for Own {
            fn name(&self) -> &str {
                "Own"
            }
            fn accepts(&self) -> &str {
                "nothing"
            }
            fn demand(
                &self,
                _: &crate::styles::style::Module<'_>,
                placements: &mut crate::styles::style::Placements,
            ) -> Result<(), crate::styles::StyleError> {
                placements.leave();
                Ok(())
            }
        }
        assert!(!Plan::new().with("", Own).treats_alike(&[], &[]));
    }
}
