//! Launched programs on any device: inputs to write, steps to run, outputs to read. What
//! [`crate::Session`] is for ranks that are threads, with the same words.

use crate::boxes::BoxRequest;
use crate::element;
use crate::error::RuntimeError;
use crate::session::{BoxReader, BoxWriter, StepReport, output_name};
use tpc_ir::program::{Binding, RankProgram};
use tpc_ir::{InputKind, OutputKind};

/// Memory that holds what ranks have, and executes their programs.
pub trait Device {
    /// The programs, in the order of their ranks.
    fn programs(&self) -> &[RankProgram];

    /// The dense bytes of a binding of the program at that position.
    ///
    /// # Errors
    /// The device failed.
    fn read(&self, rank: usize, binding: &Binding) -> Result<Vec<u8>, RuntimeError>;

    /// Writes the dense bytes of a binding of the program at that position.
    ///
    /// # Errors
    /// The device failed.
    fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError>;

    /// Runs all programs once, to their end.
    ///
    /// # Errors
    /// The device failed, or a collective did not finish.
    fn step(&mut self) -> Result<StepReport, RuntimeError>;
}

/// Programs on a device.
pub struct DeviceSession<D> {
    device: D,
    /// Of every input, whether every rank's box was given a value.
    written: Vec<Vec<bool>>,
    failed: Option<String>,
}

impl<D: Device> DeviceSession<D> {
    /// A session whose inputs have no values yet.
    pub fn new(device: D) -> Self {
        let written = device.programs().iter().map(|p| vec![false; p.inputs.len()]).collect();
        DeviceSession { device, written, failed: None }
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.device.programs().len()
    }

    /// The program of a rank.
    pub fn program(&self, rank: usize) -> &RankProgram {
        &self.device.programs()[rank]
    }

    fn input(&self, name: &str) -> Result<usize, RuntimeError> {
        let inputs = &self.program(0).inputs;
        inputs.iter().position(|i| i.name == name).ok_or_else(|| RuntimeError::Unknown {
            what: "input",
            name: name.into(),
            known: inputs.iter().map(|i| i.name.clone()).collect(),
        })
    }

    fn output(&self, kind: &OutputKind) -> Result<usize, RuntimeError> {
        let outputs = &self.program(0).outputs;
        outputs.iter().position(|o| o.kind == *kind).ok_or_else(|| RuntimeError::Unknown {
            what: "output",
            name: output_name(kind),
            known: outputs.iter().map(|o| output_name(&o.kind)).collect(),
        })
    }

    /// As [`crate::Session::write_bytes`].
    ///
    /// # Errors
    /// No such input, the wrong number of bytes, or a failed device.
    pub fn write_bytes(&mut self, name: &str, data: &[u8]) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let binding = &self.program(0).inputs[input].binding;
        let dtype = binding.view.dtype;
        let expected = binding.global.iter().product::<usize>() * dtype.bytes();
        if data.len() != expected {
            let shape = format!("{dtype}{:?}", binding.layout);
            return Err(RuntimeError::Size { name: name.into(), expected, given: data.len(), shape });
        }
        for rank in 0..self.ranks() {
            self.fill(rank, input, &mut |request, to| {
                request.runs(&mut |from, at, n| to[at..at + n].copy_from_slice(&data[from..from + n]));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// As [`crate::Session::write_f64`].
    ///
    /// # Errors
    /// As [`DeviceSession::write_bytes`].
    pub fn write_f64(&mut self, name: &str, data: &[f64]) -> Result<(), RuntimeError> {
        let dtype = self.program(0).inputs[self.input(name)?].binding.view.dtype;
        self.write_bytes(name, &element::encode(dtype, data))
    }

    /// As [`crate::Session::write_box`].
    ///
    /// # Errors
    /// No such input, what the loader says, or a failed device.
    pub fn write_box(&mut self, name: &str, rank: usize, reader: &mut BoxReader<'_>) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        self.fill(rank, input, reader)
    }

    fn fill(&mut self, rank: usize, input: usize, reader: &mut BoxReader<'_>) -> Result<(), RuntimeError> {
        let of = &self.program(rank).inputs[input];
        let (name, binding) = (of.name.clone(), of.binding.clone());
        let mut bytes = vec![0; binding.view.elements() * binding.view.dtype.bytes()];
        reader(&BoxRequest::of(&binding), &mut bytes).map_err(|reason| RuntimeError::Transfer {
            name,
            rank,
            reason,
        })?;
        self.device.write(rank, &binding, &bytes)?;
        self.written[rank][input] = true;
        Ok(())
    }

    fn assemble<'a>(
        &'a self,
        name: &str,
        binding: &dyn Fn(&'a RankProgram) -> &'a Binding,
    ) -> Result<Vec<u8>, RuntimeError> {
        let first = binding(self.program(0));
        let total: usize = first.global.iter().product();
        let mut whole = vec![0; total * first.view.dtype.bytes()];
        let mut seen: Vec<(&[usize], &[usize])> = Vec::new();
        let mut held = 0;
        for rank in 0..self.ranks() {
            let b = binding(self.program(rank));
            let key = (&b.start[..], &b.view.shape[..]);
            if b.view.elements() == 0 || seen.contains(&key) {
                continue;
            }
            let from = self.device.read(rank, b)?;
            BoxRequest::of(b).runs(&mut |to, at, n| whole[to..to + n].copy_from_slice(&from[at..at + n]));
            held += b.view.elements();
            seen.push(key);
        }
        if held == total { Ok(whole) } else { Err(RuntimeError::Incomplete { name: name.into(), held, total }) }
    }

    /// As [`crate::Session::read`].
    ///
    /// # Errors
    /// No such output, boxes that do not make up the whole, or a failed device.
    pub fn read(&self, kind: &OutputKind) -> Result<Vec<u8>, RuntimeError> {
        let output = self.output(kind)?;
        self.assemble(&output_name(kind), &|p| &p.outputs[output].binding)
    }

    /// As [`crate::Session::read_f64`].
    ///
    /// # Errors
    /// As [`DeviceSession::read`].
    pub fn read_f64(&self, kind: &OutputKind) -> Result<Vec<f64>, RuntimeError> {
        let dtype = self.program(0).outputs[self.output(kind)?].binding.view.dtype;
        Ok(element::decode(dtype, &self.read(kind)?))
    }

    /// As [`crate::Session::read_input`].
    ///
    /// # Errors
    /// No such input, boxes that do not make up the whole, or a failed device.
    pub fn read_input(&self, name: &str) -> Result<Vec<u8>, RuntimeError> {
        let input = self.input(name)?;
        self.assemble(name, &|p| &p.inputs[input].binding)
    }

    /// As [`crate::Session::read_input_f64`].
    ///
    /// # Errors
    /// As [`DeviceSession::read_input`].
    pub fn read_input_f64(&self, name: &str) -> Result<Vec<f64>, RuntimeError> {
        let dtype = self.program(0).inputs[self.input(name)?].binding.view.dtype;
        Ok(element::decode(dtype, &self.read_input(name)?))
    }

    /// As [`crate::Session::read_rank`].
    ///
    /// # Errors
    /// No such output, or a failed device.
    pub fn read_rank(&self, kind: &OutputKind, rank: usize) -> Result<Vec<u8>, RuntimeError> {
        let output = self.output(kind)?;
        self.device.read(rank, &self.program(rank).outputs[output].binding)
    }

    /// As [`crate::Session::read_box`].
    ///
    /// # Errors
    /// No such input, what the saver says, or a failed device.
    pub fn read_box(&self, name: &str, rank: usize, writer: &mut BoxWriter<'_>) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let binding = &self.program(rank).inputs[input].binding;
        let bytes = self.device.read(rank, binding)?;
        writer(&BoxRequest::of(binding), &bytes).map_err(|reason| RuntimeError::Transfer {
            name: name.into(),
            rank,
            reason,
        })
    }

    /// The first parameter or tensor of the batch that has no value on some rank.
    pub fn unwritten(&self) -> Option<&str> {
        let inputs = self.program(0).inputs.iter().enumerate();
        let mut needed = inputs.filter(|(_, i)| matches!(i.kind, InputKind::Parameter | InputKind::Data));
        let has = |input: usize, rank: usize| {
            self.written[rank][input] || self.program(rank).inputs[input].binding.view.elements() == 0
        };
        needed.find(|(input, _)| !(0..self.ranks()).all(|rank| has(*input, rank))).map(|(_, i)| i.name.as_str())
    }

    /// As [`crate::Session::step`].
    ///
    /// # Errors
    /// An input without a value; what the device says, and then for every later step.
    pub fn step(&mut self) -> Result<StepReport, RuntimeError> {
        if let Some(reason) = &self.failed {
            return Err(RuntimeError::Poisoned(reason.clone()));
        }
        if let Some(name) = self.unwritten() {
            return Err(RuntimeError::Missing { name: name.into() });
        }
        self.device.step().inspect_err(|e| self.failed = Some(e.to_string()))
    }

    /// Goes on with other programs, on a device that has them: what inputs hold is copied there. For
    /// the peeled first step of an optimizer.
    ///
    /// # Errors
    /// Programs whose inputs differ, or a failed device.
    pub fn succeed(&mut self, mut next: D) -> Result<(), RuntimeError> {
        let same = self.ranks() == next.programs().len()
            && self.device.programs().iter().zip(next.programs()).all(|(a, b)| {
                let of = |p: &RankProgram| -> Vec<_> {
                    p.inputs
                        .iter()
                        .map(|i| (i.name.clone(), i.binding.view.shape.clone(), i.binding.start.clone()))
                        .collect()
                };
                of(a) == of(b)
            });
        if !same {
            return Err(RuntimeError::Launch("a succeeding program must have the same inputs".into()));
        }
        for rank in 0..self.ranks() {
            for input in 0..self.program(rank).inputs.len() {
                let bytes = self.device.read(rank, &self.program(rank).inputs[input].binding)?;
                let to = next.programs()[rank].inputs[input].binding.clone();
                next.write(rank, &to, &bytes)?;
            }
        }
        self.device = next;
        Ok(())
    }
}
