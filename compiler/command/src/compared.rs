//! Plans that a command compares, each on its mesh: options that are given once for all of them, or once for each.

use crate::options::{Chosen, Fp};
use crate::{Failure, Outcome, Placement};
use clap::Args;

/// The options that say how plans are compiled.
#[derive(Debug, Args)]
pub struct Compared {
    /// Mesh axes with their sizes, as in the other commands; given once for all plans or once for each
    #[arg(long, value_name = "MESH")]
    mesh: Vec<String>,
    /// What decides the placements that a plan leaves open; given once for all plans or once for each
    #[arg(long, value_enum, value_name = "WHO", default_value = "given")]
    placements: Vec<Chosen>,
    /// Target to plan for: a built-in one (cpu, h100-node, h200-node, ethernet) or a JSON file, as tpc calibrate writes it [default: cpu]
    #[arg(long, value_name = "NAME|FILE")]
    target: Option<String>,
}

impl Compared {
    /// The plans on their meshes, one or two.
    ///
    /// # Errors
    /// An option that is given more often than there are plans.
    pub(crate) fn placements(&self, plans: &[String]) -> Outcome<Vec<Placement>> {
        let of = plans.len();
        let meshes = for_each("mesh", &self.mesh, String::new(), of)?;
        let chosen = for_each("placements", &self.placements, Chosen::Given, of)?;
        let each = plans.iter().zip(meshes).zip(chosen);
        let placement = |((plan, mesh), placements): ((&String, String), Chosen)| Placement {
            plan: plan.clone(),
            mesh,
            placements,
            memory_limit: None,
            target: self.target.clone(),
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
