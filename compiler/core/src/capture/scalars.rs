//! Numbers that change with the step or the learning rate.
//!
//! burn computes them on the host and writes them into the graph. They are found by recording the same update at
//! several steps and learning rates: every number that differs becomes an input. All of these values together identify
//! a number, so that all uses of the learning rate, within one update and across parameters, share one input.

use std::collections::HashMap;
use std::fmt;

use super::error::CaptureError;
use super::probe::{Number, Probe};
use super::trace::{ScalarIndex, Trace};

/// Learning rates at which updates are compared; optimizers treat neither of them specially.
pub(super) const RATES: [f64; 2] = [0.0117, 0.00321];
/// The number of steps that are compared. The update of step 2 must be that of every later step.
const STEPS: usize = 4;
/// Replaces a learning rate of zero, for which optimizers omit operations. It is zero in f32.
const ALMOST_ZERO: f64 = 1e-290;

/// Computes the values of the step-dependent inputs.
pub struct StepScalars {
    entries: Vec<Entry>,
    classes: Vec<Class>,
}

/// One step-dependent input.
struct Entry {
    /// The group of parameters that it belongs to, which share a learning rate.
    group: usize,
    label: String,
    steady: Option<Source>,
    first: Option<Source>,
    /// The observed values, which identify the number.
    steady_values: Vec<u64>,
    first_values: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Source {
    class: usize,
    at: ScalarIndex,
}

/// The parameters of one group, shape and dtype, which are all updated in the same way.
struct Class {
    group: usize,
    probe: Box<dyn Probe>,
    first: Vec<String>,
    steady: Vec<String>,
}

/// A class of parameters, with the probe that updates one of them.
pub(super) struct Probed {
    pub(super) group: usize,
    pub(super) probe: Box<dyn Probe>,
}

/// The scalars that become inputs, in both updates of a class.
#[derive(Debug)]
pub(super) struct ClassPlan {
    pub(super) first: UpdatePlan,
    pub(super) steady: UpdatePlan,
}

/// The scalars that become inputs, in one update.
#[derive(Debug)]
pub(super) struct UpdatePlan {
    pub(super) skeleton: Vec<String>,
    pub(super) inputs: HashMap<ScalarIndex, usize>,
}

impl StepScalars {
    /// Number of step-dependent inputs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none, so that the program is the same for every step and learning rate.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The operation and position at which a number was found, for diagnostics.
    pub fn label(&self, index: usize) -> &str {
        &self.entries[index].label
    }

    /// The values of all step-dependent inputs at a step (counted from 1) with a learning rate.
    ///
    /// An input that only one of the two programs has is `NaN` for the other. Requesting steps in order is cheapest; an
    /// earlier step restarts the recording.
    pub fn values(&mut self, step: usize, lr: f64) -> Result<Vec<f64>, CaptureError> {
        self.values_of_groups(step, &|_| lr)
    }

    /// [`StepScalars::values`] with a learning rate for each group of parameters.
    pub(crate) fn values_of_groups(
        &mut self,
        step: usize,
        rate: &dyn Fn(usize) -> f64,
    ) -> Result<Vec<f64>, CaptureError> {
        let mut traces: HashMap<usize, Trace> = HashMap::new();
        let mut values = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let source = if step <= 1 { entry.first } else { entry.steady };
            let Some(Source { class, at }) = source else {
                values.push(f64::NAN);
                continue;
            };
            if let std::collections::hash_map::Entry::Vacant(vacant) = traces.entry(class) {
                let lr = rate(self.classes[class].group);
                vacant.insert(self.classes[class].update(step, if lr == 0.0 { ALMOST_ZERO } else { lr })?);
            }
            values.push(traces[&class].value(at).unwrap_or(f64::NAN));
        }
        Ok(values)
    }

    /// The numbers in the optimizer state of a parameter of a class after `steps` steps, at least one.
    pub(crate) fn state_numbers(&mut self, class: usize, steps: usize) -> Result<Vec<Number>, CaptureError> {
        self.classes[class].probe.numbers(steps, RATES[0])
    }

    /// Finds the step-dependent numbers in the updates of several classes.
    pub(super) fn find(probes: Vec<Probed>) -> Result<(Self, Vec<ClassPlan>), CaptureError> {
        let mut found = Self { entries: Vec::new(), classes: Vec::new() };
        let plans = probes.into_iter().map(|probed| found.add(probed)).collect::<Result<_, _>>()?;
        Ok((found, plans))
    }

    fn add(&mut self, Probed { group, probe }: Probed) -> Result<ClassPlan, CaptureError> {
        let observed = Observed::new(&*probe)?;
        let unit = probe.unit();
        // A parameter of one element suffices unless the update depends on the shape.
        let probe = if Observed::new(&*unit).is_ok_and(|unit| unit.agrees(&observed)) { unit } else { probe };
        let class = self.classes.len();
        let (first, steady) = (observed.first().clone(), observed.steady().clone());
        self.classes.push(Class { group, probe, first: first.skeleton.clone(), steady: steady.skeleton.clone() });

        let mut steady_inputs = HashMap::new();
        for (position, site) in steady.sites.iter().enumerate() {
            let values = observed.steady_values(position);
            if values.iter().any(|value| *value != values[0]) {
                let label = format!("{} #{}", steady.skeleton[site.at.operation], site.at.slot);
                steady_inputs.insert(site.at, self.steady_entry(group, values, label, Source { class, at: site.at }));
            }
        }
        let aligned = first.align(&steady);
        let mut first_inputs = HashMap::new();
        for (position, site) in first.sites.iter().enumerate() {
            let values = observed.first_values(position);
            let input = aligned.get(&site.at).and_then(|at| steady_inputs.get(at)).copied();
            if input.is_some() || values[0] != values[1] {
                let label = format!("{} #{} (first step)", first.skeleton[site.at.operation], site.at.slot);
                first_inputs
                    .insert(site.at, self.first_entry(group, input, values, label, Source { class, at: site.at }));
            }
        }
        Ok(ClassPlan {
            first: UpdatePlan { skeleton: first.skeleton, inputs: first_inputs },
            steady: UpdatePlan { skeleton: steady.skeleton, inputs: steady_inputs },
        })
    }

    fn steady_entry(&mut self, group: usize, values: Vec<u64>, label: String, source: Source) -> usize {
        let known = |entry: &Entry| entry.group == group && entry.steady_values == values;
        if let Some(index) = self.entries.iter().position(known) {
            return index;
        }
        self.entries.push(Entry {
            group,
            label,
            steady: Some(source),
            first: None,
            steady_values: values,
            first_values: Vec::new(),
        });
        self.entries.len() - 1
    }

    /// The entry of a number of the first step: that of the corresponding number of later steps or, if that entry
    /// already has a different first value, a new one.
    fn first_entry(
        &mut self,
        group: usize,
        aligned: Option<usize>,
        values: Vec<u64>,
        label: String,
        source: Source,
    ) -> usize {
        let same = |entry: &Entry| entry.group == group && entry.first_values == values;
        let free = aligned.filter(|&index| self.entries[index].first.is_none());
        let index = aligned
            .filter(|&index| same(&self.entries[index]))
            .or(free)
            .or_else(|| self.entries.iter().position(|entry| entry.steady.is_none() && same(entry)));
        let index = index.unwrap_or_else(|| {
            self.entries.push(Entry {
                group,
                label,
                steady: None,
                first: None,
                steady_values: Vec::new(),
                first_values: Vec::new(),
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[index];
        entry.first.get_or_insert(source);
        entry.first_values = values;
        index
    }
}

impl Class {
    fn update(&mut self, step: usize, lr: f64) -> Result<Trace, CaptureError> {
        let trace = self.probe.step(step, lr)?;
        let expected = if step <= 1 { &self.first } else { &self.steady };
        match trace.skeleton == *expected {
            true => Ok(trace),
            false => Err(CaptureError::OptimizerChanges { step, shape: self.probe.shape() }),
        }
    }
}

impl fmt::Debug for StepScalars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.label)).finish()
    }
}

/// The updates that are compared: the first steps, for each learning rate.
struct Observed(Vec<Vec<Trace>>);

impl Observed {
    fn new(probe: &dyn Probe) -> Result<Self, CaptureError> {
        let runs: Vec<Vec<Trace>> = RATES.iter().map(|lr| probe.first_steps(STEPS, *lr)).collect::<Result<_, _>>()?;
        for run in &runs {
            for (index, trace) in run.iter().enumerate() {
                let expected = if index == 0 { &runs[0][0] } else { &runs[0][1] };
                if trace.skeleton != expected.skeleton {
                    return Err(CaptureError::OptimizerChanges { step: index + 1, shape: probe.shape() });
                }
            }
        }
        Ok(Self(runs))
    }

    fn first(&self) -> &Trace {
        &self.0[0][0]
    }

    fn steady(&self) -> &Trace {
        &self.0[0][1]
    }

    fn steady_values(&self, position: usize) -> Vec<u64> {
        self.0.iter().flat_map(|run| &run[1..]).map(|trace| trace.sites[position].value.to_bits()).collect()
    }

    fn first_values(&self, position: usize) -> Vec<u64> {
        self.0.iter().map(|run| run[0].sites[position].value.to_bits()).collect()
    }

    /// Whether the two have the same numbers, so that one can replace the other in [`StepScalars::values`].
    fn agrees(&self, other: &Observed) -> bool {
        let same = |(a, b): (&Trace, &Trace)| {
            a.skeleton == b.skeleton
                && a.sites.iter().map(|site| site.value.to_bits()).eq(b.sites.iter().map(|site| site.value.to_bits()))
        };
        self.0.iter().flatten().zip(other.0.iter().flatten()).all(same)
    }
}
