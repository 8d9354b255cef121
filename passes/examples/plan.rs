use std::time::Instant;
use tpc_passes::{
    cost::graph_seconds,
    egraph::{SearchOptions, optimize},
    planner::plan,
};
fn main() {
    let mut args = std::env::args().skip(1);
    let file = args.next().unwrap();
    let target = args.next().unwrap_or("cpu".into());
    let text = std::fs::read_to_string(&file).unwrap();
    let graph = tpc_ir::parse::parse(&text).unwrap();
    let target = tpc_passes::targets::Target::built_in(&target).cloned().unwrap_or_else(|_| {
        tpc_passes::targets::Target::from_json(&std::fs::read_to_string(&target).unwrap()).unwrap()
    });
    let before = graph_seconds(&target, &graph);
    println!("{file}: {} nodes, {before:.6} s", graph.len());
    let t = Instant::now();
    let (new, report) = plan(&graph, &target);
    println!("{report:?} {:?}", t.elapsed());
    let Some(new) = new else {
        println!("none");
        return;
    };
    let options = SearchOptions::default();
    let (a, ra) = optimize(&graph, &target, &options);
    println!("egraph of input: {:.6} {:?}", ra.after, t.elapsed());
    let (b, rb) = optimize(&new, &target, &options);
    println!("egraph of plan: {:.6} {:?}", rb.after, t.elapsed());
    let _ = a;
    if let Some(out) = args.next() {
        std::fs::write(out, tpc_ir::text::print(&b)).unwrap();
    }
}
