//! The README's program: a burn module, a plan, two ranks.
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, activation::gelu};
use burn::{module::Module, optim::AdamWConfig};
use tpc::capture::{Spec, capture_training_shapes, named};
use tpc::{ColwiseParallel, Mesh, Plan, RowwiseParallel, pretrained::initialise, program::compile_training, text};

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let build = |d: &Device| Mlp { up: LinearConfig::new(64, 256).init(d), down: LinearConfig::new(256, 64).init(d) };
    let batch = (named("x", Spec::<2>::new([32, 64], DType::F32)), named("y", Spec::<2>::new([32, 64], DType::F32)));
    let loss = |m: &Mlp, (x, y): (Tensor<2>, Tensor<2>)| (m.down.forward(gelu(m.up.forward(x))) - y).square().mean();
    let step = capture_training_shapes(build, &AdamWConfig::new().build(), batch, &Default::default(), loss)?;

    let plan = Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default());
    let program = compile_training(step, &Mesh::new([("tp", 2)])?, &plan, &Default::default(), &str::to_string)?;
    println!("{}", text::print(&program.steady.placed));
    let init = program.init.clone();
    let mut training = program.launch(Default::default())?;
    initialise(training.session(), &init, 0)?;
    for i in 0..100 {
        let x: Vec<f64> = (0..32 * 64).map(|j| f64::from(i * 32 * 64 + j).sin()).collect();
        training.session().write_f64("x", &x)?;
        training.session().write_f64("y", &x)?;
        println!("step {i}: loss {:.6}", training.step(3e-3)?);
    }
    Ok(())
}
