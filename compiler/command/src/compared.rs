//! Plans that a command compares, each on its mesh: options that are given once for all of them, or once for each.

use crate::options::{Chosen, Fp};
use crate::{Failure, Outcome, Placement, predicted};
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
    /// Memory of one rank that a program must fit into, such as 80GiB or 80GB; given once for all plans or once for each [default: any]
    #[arg(long, value_name = "SIZE", value_parser = predicted::size)]
    memory_limit: Vec<f64>,
    /// What the rewrite rules of the e-graph may do to floating-point results; given once for all plans or once for each
    #[arg(long, value_enum, value_name = "WHAT", default_value = "reassociate")]
    fp: Vec<Fp>,
    /// Switch on a rewrite rule that is off, for all plans, by its number in passes/src/egraph/rules/RULES.md; may be repeated
    #[arg(long, value_name = "N")]
    enable_rule: Vec<u32>,
    /// Disable a rewrite rule of the e-graph for all plans, by its number in passes/src/egraph/rules/RULES.md; may be repeated
    #[arg(long, value_name = "N")]
    disable_rule: Vec<u32>,
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
        let limits: Vec<Option<f64>> = self.memory_limit.iter().copied().map(Some).collect();
        let limits = for_each("memory-limit", &limits, None, of)?;
        let fp = for_each("fp", &self.fp, Fp::Reassociate, of)?;
        let placement = |at: usize| Placement {
            plan: plans[at].clone(),
            mesh: meshes[at].clone(),
            placements: chosen[at],
            memory_limit: limits[at],
            target: self.target.clone(),
            fp: fp[at],
            enable_rule: self.enable_rule.clone(),
            disable_rule: self.disable_rule.clone(),
        };
        Ok((0..of).map(placement).collect())
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
