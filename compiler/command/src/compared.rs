//! Plans that a command compares, each on its mesh: options that are given once for all of them, or once for each.

use crate::options::{Chosen, Fp};
use crate::{Failure, Outcome, Placement};

/// The options that say how plans are compiled.
pub(crate) struct Compared<'a> {
    pub(crate) plans: &'a [String],
    pub(crate) meshes: &'a [String],
    pub(crate) placements: &'a [Chosen],
    pub(crate) target: Option<&'a String>,
}

impl Compared<'_> {
    /// The plans on their meshes, one or two.
    ///
    /// # Errors
    /// An option that is given more often than there are plans.
    pub(crate) fn placements(&self) -> Outcome<Vec<Placement>> {
        let of = self.plans.len();
        let meshes = for_each("mesh", self.meshes, String::new(), of)?;
        let chosen = for_each("placements", self.placements, Chosen::Given, of)?;
        let each = self.plans.iter().zip(meshes).zip(chosen);
        let placement = |((plan, mesh), placements): ((&String, String), Chosen)| Placement {
            plan: plan.clone(),
            mesh,
            placements,
            memory_limit: None,
            target: self.target.cloned(),
            fp: Fp::Reassociate,
            enable_rule: Vec::new(),
            disable_rule: Vec::new(),
        };
        Ok(each.map(placement).collect())
    }
}

/// What an option says of each of one or two plans.
fn for_each<T: Clone>(option: &str, given: &[T], usual: T, plans: usize) -> Outcome<Vec<T>> {
    match given {
        [] => Ok(vec![usual; plans]),
        [all] => Ok(vec![all.clone(); plans]),
        each if each.len() == plans => Ok(each.to_vec()),
        more if plans == 1 => Err(Failure::new(format!(
            "--{option} is given {} times, but there is one plan: give it once, or give a second --plan",
            more.len()
        ))),
        more => Err(Failure::new(format!(
            "--{option} is given {} times: give it once for both plans, or once for each",
            more.len()
        ))),
    }
}
