//! The MLP and the attention block of `data/goldens`: PyTorch's outputs, gradients and three AdamW steps, in f32 on
//! ranks and in f64 on simulated ranks.

use burn::module::Module;
use burn::tensor::{DType as BurnDType, Device, Tensor as BurnTensor};
use std::collections::HashMap;
use std::path::PathBuf;
use tpc_compiler::capture::{
    Captured, Spec, TrainingCapture, capture_inference_shapes, capture_training_shapes, named,
};
use tpc_compiler::models::{MhaMlp, Mlp, WeightEntry, WeightMap, Weights};
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_inference, compile_training};
use tpc_ir::interpret::Tensor;
use tpc_ir::{DType, Graph, InputId, InputKind, OutputKind};
use tpc_runtime::{LaunchOptions, Session};
use tpc_tests::captured::{Values, advance, import_training, initial};
use tpc_tests::on_ranks;
use tpc_tests::training::{Named, Run, adamw, differences, mesh, plan, run};

const RATES: [f64; 3] = [1e-2; 3];

const CASES: [(&str, &str); 8] = [
    ("none", ""),
    ("none", "tp=2"),
    ("tp", "tp=1"),
    ("tp", "tp=2"),
    ("tp", "tp=4"),
    ("ddp", "dp=2"),
    ("ddp", "dp=4"),
    ("tp-ddp", "dp=2,tp=2"),
];

fn open(name: &str) -> Weights {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("data/goldens/{name}.safetensors"));
    Weights::open_file(&path).unwrap()
}

fn device() -> Device {
    Device::capture()
}

struct Golden {
    name: &'static str,
    map: WeightMap,
    training: fn() -> TrainingCapture,
    inference: fn() -> Captured,
    outputs: &'static [&'static str],
    /// Whether the data has a dimension of positions.
    sequence: bool,
}

fn captured<M: Module, const D: usize>(
    build: impl Fn(&Device) -> M,
    shape: [usize; D],
    loss: impl Fn(&M, BurnTensor<D>, BurnTensor<D>) -> BurnTensor<1>,
) -> TrainingCapture {
    let x = || Spec::<D>::new(shape, BurnDType::F32);
    let batch = (named("x", x()), named("target", x()));
    capture_training_shapes(build, &adamw(), batch, &Default::default(), |m: &M, (x, t)| loss(m, x, t)).unwrap()
}

fn mlp() -> Golden {
    let build = |d: &Device| Mlp::new(64, 256, d);
    Golden {
        name: "mlp",
        map: WeightMap::of(&build(&device()), true),
        training: || captured(|d| Mlp::new(64, 256, d), [16, 64], |m, x, t| m.loss(m.forward(x), t)),
        inference: || {
            let x = named("x", Spec::<2>::new([16, 64], BurnDType::F32));
            capture_inference_shapes(|d| Mlp::new(64, 256, d), x, |m, x| named("y", m.forward(x))).unwrap()
        },
        outputs: &["y"],
        sequence: false,
    }
}

fn mha_mlp() -> Golden {
    Golden {
        name: "mha_mlp",
        map: MhaMlp::new(64, 4, 128, &device()).weight_map(),
        training: || captured(|d| MhaMlp::new(64, 4, 128, d), [2, 16, 64], |m, x, t| m.loss(m.forward(x), t)),
        inference: || {
            let x = named("x", Spec::<3>::new([2, 16, 64], BurnDType::F32));
            capture_inference_shapes(
                |d| MhaMlp::new(64, 4, 128, d),
                x,
                |m, x| {
                    let attended = m.attn.forward(burn::nn::attention::MhaInput::self_attn(x.clone())).context;
                    (named("attn", attended), named("y", m.forward(x)))
                },
            )
            .unwrap()
        },
        outputs: &["attn", "y"],
        sequence: true,
    }
}

/// A parameter-like tensor of the file (`param.`, `grad.`, …) in burn's layout, in f64.
fn read(file: &Weights, prefix: &str, entry: &WeightEntry) -> Vec<f64> {
    let name = format!("{prefix}{}", entry.hf_name);
    let shape = file.info(&name).unwrap().shape.clone();
    let all = match file.read_f64(&name) {
        Ok(values) => values,
        Err(_) => file.read_f32(&name).unwrap().into_iter().map(f64::from).collect(),
    };
    let rows = entry.rows.clone().unwrap_or(0..shape[0]);
    let width: usize = shape[1..].iter().product();
    let part = &all[rows.start * width..rows.end * width];
    if !entry.transpose || shape.len() < 2 {
        return part.to_vec();
    }
    (0..part.len()).map(|i| part[i % rows.len() * width + i / rows.len()]).collect()
}

impl Golden {
    fn cases(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let sequence = [("tp-sp", "tp=2"), ("tp-sp", "tp=4"), ("tp-sp-ddp", "dp=2,tp=2")];
        CASES.into_iter().chain(sequence.into_iter().filter({
            let sequence = self.sequence;
            move |_| sequence
        }))
    }

    fn named(&self, file: &Weights, prefix: &str) -> Named {
        self.map.entries.iter().map(|e| (e.burn_path.clone(), read(file, prefix, e))).collect()
    }

    fn expected(&self, file: &Weights) -> Run {
        Run {
            losses: file.read_f64("losses").unwrap(),
            gradients: self.named(file, "grad."),
            parameters: self.named(file, "param_after."),
        }
    }

    fn write(&self, file: &Weights, session: &mut Session) {
        for (name, values) in self.named(file, "param.") {
            session.write_f64(&name, &values).unwrap();
        }
        let data = session.program(0).inputs.iter().filter(|i| i.kind == InputKind::Data);
        for name in data.map(|i| i.name.clone()).collect::<Vec<_>>() {
            let values: Vec<f64> = file.read_f32(&format!("in.{name}")).unwrap().into_iter().map(f64::from).collect();
            session.write_f64(&name, &values).unwrap();
        }
    }

    fn compiled(&self, capture: TrainingCapture, name: &str, on: &str) -> TrainingProgram {
        let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
        compile_training(capture, &mesh(on), &plan(name), &options, &|p| p.to_string()).unwrap()
    }

    fn outputs_are_equal(&self) {
        let file = open(self.name);
        for (name, on) in self.cases() {
            let program =
                compile_inference(&(self.inference)(), &mesh(on), &plan(name), &CompileOptions::for_cpu(), &|p| {
                    p.to_string()
                });
            let mut session = program.unwrap().launch(LaunchOptions::default()).unwrap();
            self.write(&file, &mut session);
            session.step().unwrap();
            for output in self.outputs {
                let expected = file.read_f32(&format!("out.{output}")).unwrap();
                let found = session.read_f64(&OutputKind::Result(output.to_string())).unwrap();
                let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
                assert_eq!(found.len(), expected.len());
                for (f, e) in found.iter().zip(&expected) {
                    assert!(
                        (f - f64::from(*e)).abs() <= 1e-5 * f64::from(scale),
                        "{name} on {on}: {output}: {f}, expected {e}"
                    );
                }
            }
        }
    }

    fn training_is_equal(&self) {
        let file = open(self.name);
        let expected = self.expected(&file);
        let mut wrong = Vec::new();
        for (name, on) in self.cases() {
            let program = self.compiled((self.training)(), name, on);
            let found = run(program, &RATES, |session| self.write(&file, session));
            wrong.extend(differences(&found, &expected).into_iter().map(|d| format!("{name} on {on}: {d}")));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Compares the placed programs in double precision with the file in double precision.
    fn training_is_exact(&self) {
        let file = open(&format!("{}_f64", self.name));
        let expected = self.expected(&file);
        for (name, on) in self.cases() {
            let mut capture = (self.training)();
            let scalars = [1, 2, 3].map(|step| capture.scalars.values(step, RATES[0]).unwrap());
            let [first, _] = import_training(&capture).unwrap();
            let mut values: Values = initial(&capture.first, &first);
            let program = self.compiled(capture, name, on);
            let shape_of = |graph: &Graph, id: &InputId| {
                let node = graph.inputs_by_id()[id];
                graph.node(node).types[0].shape.clone()
            };
            for (name, data) in self.named(&file, "param.") {
                let id = InputId::Parameter(name.into());
                let shape = shape_of(&first.graph, &id);
                values.insert(id, Tensor::new(DType::F32, shape, data));
            }
            for name in ["x", "target"] {
                let data = file.read_f64(&format!("in.{name}")).unwrap();
                let id = InputId::Data(name.into());
                let shape = shape_of(&first.graph, &id);
                values.insert(id, Tensor::new(DType::F32, shape, data));
            }
            for (i, scalars) in scalars.iter().enumerate() {
                // Not rounded to f32, unlike the inputs of a session.
                for (j, x) in scalars.iter().enumerate() {
                    values.insert(
                        InputId::read(InputKind::Scalar, &format!("step.{j}")),
                        Tensor::new(DType::F32, [1], vec![*x]),
                    );
                }
                let graph = if i == 0 { &program.first.placed } else { &program.steady.placed };
                let of_graph: HashMap<_, _> = graph.inputs().map(|(_, id)| (id.clone(), values[id].clone())).collect();
                let found = on_ranks(graph, &of_graph);
                let found: HashMap<OutputKind, Tensor> =
                    graph.outputs.iter().map(|o| o.kind.clone()).zip(found).collect();
                let (loss, want) = (found[&OutputKind::Loss].data[0], expected.losses[i]);
                // burn holds the betas in f32, which first matters in the second update.
                let tolerance = [1e-12, 1e-9, 1e-7][i];
                assert!((loss - want).abs() <= tolerance * want, "{name} on {on}: loss {i} is {loss}, expected {want}");
                for (path, want) in expected.gradients.iter().filter(|_| i == 0) {
                    close(
                        &found[&OutputKind::Gradient(path.into())].data,
                        want,
                        1e-10,
                        &format!("{name} on {on}: {path}"),
                    );
                }
                advance(&mut values, &found);
            }
            for (path, want) in &expected.parameters {
                close(
                    &values[&InputId::Parameter(path.into())].data,
                    want,
                    1e-6,
                    &format!("{name} on {on}: {path} after 3 steps"),
                );
            }
        }
    }
}

fn close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    let off = found.iter().zip(expected).fold(0.0f64, |m, (f, e)| m.max((f - e).abs() / scale));
    assert!(off <= tolerance, "{what}: off by {off:e}");
}

macro_rules! goldens {
    ($($name:ident)+) => { $(
        mod $name {
            #[test]
            fn outputs() {
                super::$name().outputs_are_equal();
            }

            #[test]
            fn training() {
                super::$name().training_is_equal();
            }

            #[test]
            fn training_in_double_precision() {
                super::$name().training_is_exact();
            }
        }
    )+ };
}

goldens!(mlp mha_mlp);
