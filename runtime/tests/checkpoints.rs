//! Checkpoints: any layout to any other, interrupted writes, damaged files, memory.

#[path = "support/counting.rs"]
mod counting;
mod support;

use counting::{alone, peak};
use proptest::prelude::*;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use support::*;
use tpc_ir::program::RankProgram;
use tpc_ir::{DType, InputKind, Mesh};
use tpc_runtime::boxes::{Runs, meet_all};
use tpc_runtime::checkpoint::{BLOCK, Checkpoint, FaultKind, SaveOptions, WriteFault, load, save};
use tpc_runtime::{CheckpointError, Fault, LaunchOptions, RuntimeError, Session};

/// A directory for one test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tpc-checkpoints-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Scratch(dir)
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tensor of a program: its dimensions, and the mesh axes that shard each.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    kind: InputKind,
    dtype: DType,
    layout: Vec<usize>,
    factors: Vec<usize>,
    axes: Vec<Vec<usize>>,
}

fn tensor(name: &str, kind: InputKind, layout: &[usize], factors: &[usize], axes: &[&[usize]]) -> Tensor {
    let axes = axes.iter().map(|a| a.to_vec()).collect();
    Tensor { name: name.into(), kind, dtype: DType::F32, layout: layout.into(), factors: factors.into(), axes }
}

fn programs(mesh: &Mesh, tensors: &[Tensor]) -> Vec<RankProgram> {
    (0..mesh.ranks())
        .map(|rank| {
            let coords = mesh.coords(rank);
            let mut b = Builder::of(mesh.clone(), rank);
            for t in tensors {
                let (mut start, mut shape) = (vec![0; t.factors.len()], t.factors.clone());
                for (d, axes) in t.axes.iter().enumerate() {
                    for &axis in axes {
                        // Each axis splits the part left by the ones before it, in chunks rounded up.
                        let chunk = shape[d].div_ceil(mesh.axes()[axis].size);
                        let first = (coords[axis] * chunk).min(shape[d]);
                        (start[d], shape[d]) = (start[d] + first, chunk.min(shape[d] - first));
                    }
                }
                let view = b.buffer(t.dtype, &shape);
                b.bind_input(&t.name, &view, t.factors.clone(), start);
                let input = b.program.inputs.last_mut().unwrap();
                (input.kind, input.binding.layout) = (t.kind, t.layout.clone());
            }
            b.program
        })
        .collect()
}

fn launch(mesh: &Mesh, tensors: &[Tensor]) -> Session {
    Session::launch(programs(mesh, tensors), LaunchOptions::default()).unwrap()
}

fn value(tensor: usize, element: usize, salt: usize) -> f64 {
    ((tensor * 37 + element * 5 + salt) % 251) as f64
}

fn fill(session: &mut Session, tensors: &[Tensor], salt: usize) {
    for (t, tensor) in tensors.iter().enumerate() {
        let values: Vec<f64> = (0..tensor.layout.iter().product()).map(|i| value(t, i, salt)).collect();
        session.write_f64(&tensor.name, &values).unwrap();
    }
}

/// Whether every element on every rank has the value of [`fill`].
fn holds(session: &Session, tensors: &[Tensor], salt: usize) -> bool {
    tensors.iter().enumerate().all(|(t, tensor)| {
        (0..session.ranks()).all(|rank| {
            let mut right = true;
            let mut look = |request: &tpc_runtime::BoxRequest, bytes: &[u8]| {
                let found = tpc_runtime::element::decode(tensor.dtype, bytes);
                for run in request.element_runs() {
                    right &= (0..run.len).all(|i| {
                        let expected = value(t, run.first + i, salt);
                        found[run.at + i]
                            == if tensor.dtype == DType::Bool { f64::from(expected != 0.0) } else { expected }
                    });
                }
                Ok(())
            };
            session.read_box(&tensor.name, rank, &mut look).unwrap();
            right
        })
    })
}

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::I64, DType::U8, DType::Bool, DType::BF16];

/// The same row-major elements with random dimensions: adjacent ones are merged.
fn merged(primes: &[usize], cuts: &[bool]) -> Vec<usize> {
    let mut dims: Vec<usize> = Vec::new();
    for (&p, &cut) in primes.iter().zip(cuts) {
        match dims.last_mut() {
            Some(last) if !cut => *last *= p,
            _ => dims.push(p),
        }
    }
    dims
}

fn any_mesh() -> impl Strategy<Value = Mesh> {
    proptest::collection::vec(1usize..4, 0..3).prop_map(|sizes| {
        let names = ["a", "b"];
        Mesh::new(names.into_iter().zip(sizes)).unwrap()
    })
}

/// Per tensor: element counts of the finest dimensions, the model's layout, two programs' dimensions, and random axes for both.
type Shape = (Vec<usize>, Vec<bool>, [Vec<bool>; 2], [Vec<usize>; 2], usize);

fn any_shape() -> impl Strategy<Value = Shape> {
    (0usize..5).prop_flat_map(|n| {
        let cuts = || proptest::collection::vec(any::<bool>(), n);
        let dims = proptest::collection::vec(0usize..5, n);
        (
            dims,
            cuts(),
            [cuts(), cuts()],
            [proptest::collection::vec(0usize..6, 2), proptest::collection::vec(0usize..6, 2)],
            0..DTYPES.len(),
        )
    })
}

fn program_of(shapes: &[Shape], side: usize, mesh: &Mesh) -> Vec<Tensor> {
    let one = |(i, (dims, layout, cuts, places, dtype)): (usize, &Shape)| {
        let factors = merged(dims, &cuts[side]);
        let mut axes = vec![Vec::new(); factors.len()];
        for (axis, &place) in places[side].iter().enumerate().take(mesh.axes().len()) {
            // Some axes shard no dimension: the tensor is replicated along them.
            if let Some(cut) = axes.get_mut(place) {
                cut.push(axis);
            }
        }
        let kind = [InputKind::Parameter, InputKind::State][i % 2];
        let layout = merged(dims, layout);
        Tensor { name: format!("t{i}"), kind, dtype: DTYPES[*dtype], layout, factors, axes }
    };
    shapes.iter().enumerate().map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Uneven and empty boxes, other dimensions, other meshes, replicas: the loaded values are the saved values.
    #[test]
    fn any_layout_loads_on_any_other(
        shapes in proptest::collection::vec(any_shape(), 1..5), from in any_mesh(), to in any_mesh()
    ) {
        let _alone = alone();
        let scratch = Scratch::new("property");
        let (saved, wanted) = (program_of(&shapes, 0, &from), program_of(&shapes, 1, &to));
        let mut session = launch(&from, &saved);
        fill(&mut session, &saved, 1);
        save(&session, &scratch.0, 7, 3, &SaveOptions::default()).unwrap();
        let checkpoint = Checkpoint::latest(&scratch.0).unwrap();
        prop_assert_eq!((checkpoint.step(), checkpoint.seed()), (7, 3));
        // Only one of several replicas is stored.
        for tensor in &checkpoint.index().tensors {
            let held: usize = tensor.boxes.iter().map(|b| b.shape.iter().product::<usize>()).sum();
            prop_assert_eq!(held, tensor.shape.iter().product::<usize>());
        }
        let mut other = launch(&to, &wanted);
        fill(&mut other, &wanted, 100);
        load(&mut other, &checkpoint).unwrap();
        prop_assert!(holds(&other, &wanted, 1));
        // The files are safetensors files with the boxes.
        for file in &checkpoint.index().files {
            let bytes = std::fs::read(checkpoint.dir().join(&file.name)).unwrap();
            safetensors::SafeTensors::deserialize(&bytes).unwrap();
        }
    }

    #[test]
    fn boxes_meet_where_they_have_elements_in_common(
        dims in proptest::collection::vec(1usize..5, 1..5),
        cuts in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 5), 2),
        at in proptest::collection::vec(proptest::collection::vec((0usize..100, 0usize..100), 5), 2),
        skip in 0usize..300,
    ) {
        let total: usize = dims.iter().product();
        let one = |side: usize| {
            let global = merged(&dims, &cuts[side]);
            let start: Vec<usize> = global.iter().zip(&at[side]).map(|(g, a)| a.0 % g).collect();
            let shape: Vec<usize> =
                global.iter().zip(&start).zip(&at[side]).map(|((g, s), a)| a.1 % (g - s + 1)).collect();
            Runs::new(&global, &start, &shape)
        };
        let (a, b) = (one(0), one(1));
        let place = |runs: Runs| {
            let mut places = vec![None; total];
            runs.for_each(|r| (0..r.len).for_each(|i| places[r.first + i] = Some(r.at + i)));
            places
        };
        let (x, y) = (place(a.clone()), place(b.clone()));
        let expected: Vec<(usize, usize)> = x.iter().zip(&y).filter_map(|(x, y)| Some(((*x)?, (*y)?))).collect();
        let mut found = Vec::new();
        meet_all(a.clone(), b, &mut |i, j, n| found.extend((0..n).map(|k| (i + k, j + k))));
        prop_assert_eq!(found, expected);
        let mut jumped = a.clone();
        jumped.skip_to(skip);
        prop_assert_eq!(jumped.collect::<Vec<_>>(), a.filter(|r| r.end() > skip).collect::<Vec<_>>());
    }
}

fn small() -> (Mesh, Vec<Tensor>) {
    let mesh = Mesh::new([("dp", 2), ("tp", 2)]).unwrap();
    let (parameter, state) = (InputKind::Parameter, InputKind::State);
    let tensors = vec![
        tensor("w", parameter, &[6, 10], &[6, 2, 5], &[&[], &[1], &[]]),
        tensor("b", parameter, &[7], &[7], &[&[]]),
        tensor("w/m", state, &[6, 10], &[6, 2, 5], &[&[0], &[1], &[]]),
    ];
    (mesh, tensors)
}

#[test]
fn all_ranks_write_and_the_index_names_the_boxes() {
    let _alone = alone();
    let scratch = Scratch::new("spread");
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    fill(&mut session, &tensors, 0);
    let path = save(&session, &scratch.0, 12, 5, &SaveOptions::default()).unwrap();
    assert_eq!(path, scratch.0.join("step-000012"));
    let checkpoint = Checkpoint::latest(&scratch.0).unwrap();
    let index = checkpoint.index();
    assert_eq!(index.mesh, [("dp".to_string(), 2), ("tp".to_string(), 2)]);
    assert_eq!(index.files.len(), 4);
    let [w, b, m] = &index.tensors[..] else { panic!() };
    assert_eq!((w.boxes.len(), b.boxes.len(), m.boxes.len()), (2, 1, 4));
    assert_eq!((&w.shape[..], &w.factors[..], w.kind.as_str()), (&[6, 10][..], &[6, 2, 5][..], "parameter"));
    // Two halves of w (120 bytes each) and b (28 bytes), written by different ranks.
    let writers: std::collections::BTreeSet<usize> = w.boxes.iter().chain(&b.boxes).map(|b| b.file).collect();
    assert_eq!(writers.len(), 3);
}

#[test]
fn a_write_that_ends_anywhere_leaves_a_whole_checkpoint() {
    let _alone = alone();
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    let mut other = launch(&mesh, &tensors);
    let (mut killed, mut whole) = (0, 0);
    for kind in [FaultKind::Kill, FaultKind::FullDisk] {
        // Fails at every byte and operation of the write, until it succeeds.
        let mut after = 0;
        loop {
            let scratch = Scratch::new("interrupted");
            fill(&mut session, &tensors, 1);
            let keep = NonZeroUsize::new(1);
            let first = save(&session, &scratch.0, 1, 0, &SaveOptions { keep, ..SaveOptions::default() }).unwrap();
            let bytes: u64 = std::fs::read_dir(first).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            fill(&mut session, &tensors, 2);
            let fault = Some(WriteFault { after, kind });
            let result = save(&session, &scratch.0, 2, 0, &SaveOptions { keep, fault, ..SaveOptions::default() });
            let latest = Checkpoint::latest(&scratch.0).unwrap();
            load(&mut other, &latest).unwrap();
            assert!(holds(&other, &tensors, latest.step() as usize), "{kind:?} after {after}");
            match &result {
                Ok(_) => assert_eq!((latest.step(), scratch.names()), (2, vec!["step-000002".to_string()])),
                Err(e) => assert!(e.to_string().ends_with(": injected fault"), "{e}"),
            }
            // Leftovers do no harm, and the next save removes them.
            if after % 97 == 0 {
                fill(&mut session, &tensors, 3);
                save(&session, &scratch.0, 3, 0, &SaveOptions { keep, ..SaveOptions::default() }).unwrap();
                assert_eq!(scratch.names(), ["step-000003"]);
            } else if kind == FaultKind::FullDisk && latest.step() == 1 {
                assert_eq!(scratch.names(), ["step-000001"], "{after}");
            }
            if result.is_ok() {
                break;
            }
            if latest.step() == 1 {
                killed += 1
            } else {
                whole += 1
            }
            // One by one in the headers of the files and around the last operations.
            after = (1 + after + after / 64).min((bytes - 10).max(after + 1));
        }
    }
    assert!(killed > 200 && whole > 3, "{killed} {whole}");
}

#[test]
fn saving_a_step_again_replaces_it() {
    let _alone = alone();
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    for after in 0.. {
        let scratch = Scratch::new("again");
        fill(&mut session, &tensors, 1);
        save(&session, &scratch.0, 4, 0, &SaveOptions::default()).unwrap();
        fill(&mut session, &tensors, 2);
        // The last operations only, after all bytes are written.
        let fault = Some(WriteFault { after: 3000 + after, kind: FaultKind::Kill });
        let result = save(&session, &scratch.0, 4, 0, &SaveOptions { fault, ..SaveOptions::default() });
        let mut other = launch(&mesh, &tensors);
        load(&mut other, &Checkpoint::latest(&scratch.0).unwrap()).unwrap();
        assert!(holds(&other, &tensors, 1) || holds(&other, &tensors, 2));
        if result.is_ok() {
            assert_eq!(scratch.names(), ["step-000004.1"]);
            assert!(holds(&other, &tensors, 2));
            break;
        }
        assert!(after < 3000);
    }
}

#[test]
fn only_the_last_ones_are_kept_and_later_ones_are_not_hidden() {
    let _alone = alone();
    let scratch = Scratch::new("keep");
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    fill(&mut session, &tensors, 0);
    let keep = |n| SaveOptions { keep: NonZeroUsize::new(n), ..SaveOptions::default() };
    for step in 1..=5 {
        save(&session, &scratch.0, step, 0, &keep(3)).unwrap();
    }
    assert_eq!(scratch.names(), ["step-000003", "step-000004", "step-000005"]);
    save(&session, &scratch.0, 6, 0, &keep(1)).unwrap();
    assert_eq!(scratch.names(), ["step-000006"]);
    let error = save(&session, &scratch.0, 5, 0, &keep(1)).unwrap_err();
    assert!(matches!(error, CheckpointError::Later { found: 6, step: 5, .. }), "{error}");
    assert_eq!(Checkpoint::latest(&scratch.0.join("step-000006")).unwrap().step(), 6);
    // Without a number, all are kept.
    (7..=9).for_each(|step| drop(save(&session, &scratch.0, step, 0, &SaveOptions::default()).unwrap()));
    assert_eq!(scratch.names(), ["step-000006", "step-000007", "step-000008", "step-000009"]);
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_refused() {
    let _alone = alone();
    let scratch = Scratch::new("name");
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    fill(&mut session, &tensors, 0);
    let kept = SaveOptions { alphabet: Some("\n abc".into()), ..SaveOptions::default() };
    save(&session, &scratch.0, 3, 0, &kept).unwrap();
    let dir = save(&session, &scratch.0, 3, 0, &kept).unwrap();
    assert_eq!(scratch.names(), ["step-000003.1"]);
    // A name that is not a step's has no meaning.
    for name in ["best", "step-3"] {
        let renamed = scratch.0.join(name);
        std::fs::rename(&dir, &renamed).unwrap();
        assert_eq!(Checkpoint::open(&renamed).unwrap().alphabet(), Some("\n abc"));
        std::fs::rename(&renamed, &dir).unwrap();
    }
    std::fs::rename(&dir, scratch.0.join("step-000010")).unwrap();
    let message = Checkpoint::latest(&scratch.0).unwrap_err().to_string();
    assert_eq!(
        message.replace(&scratch.0.display().to_string(), "RUN"),
        "RUN/step-000010: its name says step 10, but its index says step 3: it was renamed or copied; rename it to step-000003 or remove it"
    );
}

#[test]
fn every_damaged_byte_is_found() {
    let _alone = alone();
    let scratch = Scratch::new("damage");
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    fill(&mut session, &tensors, 1);
    let dir = save(&session, &scratch.0, 1, 0, &SaveOptions::default()).unwrap();
    let attempt = || -> Result<(), CheckpointError> {
        let mut other = launch(&mesh, &tensors);
        let result = load(&mut other, &Checkpoint::latest(&scratch.0)?);
        if result.is_err() {
            // A partial load is useless.
            assert!(matches!(other.step(), Err(RuntimeError::Poisoned(_))));
            let other_dir = scratch.0.join("other");
            assert!(save(&other, &other_dir, 2, 0, &SaveOptions::default()).is_err() && !other_dir.exists());
        }
        result
    };
    attempt().unwrap();
    let mut random = Lcg(5);
    let mut named = 0;
    let files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    for file in &files {
        let whole = std::fs::read(file).unwrap();
        for i in 0..150 {
            let mut bytes = whole.clone();
            if i % 3 == 0 {
                bytes.truncate(random.below(whole.len()));
            } else {
                bytes[random.below(whole.len())] ^= 1 << random.below(8);
            }
            std::fs::write(file, &bytes).unwrap();
            let error = attempt().unwrap_err();
            let CheckpointError::Damaged { file: named_file, tensor, .. } = &error else { panic!("{error}") };
            assert_eq!(named_file, file, "{error}");
            named += usize::from(tensor.is_some());
        }
        std::fs::write(file, &whole).unwrap();
    }
    assert!(named > 300, "{named}");
    let rank = files.iter().find(|f| f.ends_with("rank-00000.safetensors")).unwrap();
    let whole = std::fs::read(rank).unwrap();
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 4;
    std::fs::write(rank, &bytes).unwrap();
    let message = attempt().unwrap_err().to_string().replace(&scratch.0.display().to_string(), "RUN");
    let head = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let read = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let (last, bytes) =
        read.iter().map(|(n, t)| (n.to_string(), t.data())).max_by_key(|(_, data)| data.as_ptr()).unwrap();
    let bytes = bytes.len();
    assert!(head < whole.len());
    assert_eq!(
        message,
        format!(
            "RUN/step-000001/rank-00000.safetensors: damaged (tensor `{last}`): bytes {}..{} do not match the hash in the index; \
             remove RUN/step-000001 to resume from the checkpoint before it",
            whole.len() - bytes,
            whole.len()
        )
    );
    std::fs::remove_file(rank).unwrap();
    assert!(matches!(attempt(), Err(CheckpointError::Io { .. })));
}

#[test]
fn a_checkpoint_of_something_else_says_what_does_not_fit() {
    let _alone = alone();
    let scratch = Scratch::new("other");
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    fill(&mut session, &tensors, 1);
    save(&session, &scratch.0, 1, 0, &SaveOptions::default()).unwrap();
    let says = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut other = tensors.clone();
        change(&mut other);
        let mut session = launch(&mesh, &other);
        fill(&mut session, &other, 9);
        let error = load(&mut session, &Checkpoint::latest(&scratch.0).unwrap()).unwrap_err();
        // Nothing was changed.
        assert!(holds(&session, &other, 9));
        session.step().unwrap();
        let message = error.to_string().replace(&scratch.0.display().to_string(), "RUN");
        let (first, way_out) = message.split_once("; ").unwrap();
        assert!(way_out.starts_with("a checkpoint fits only the model and optimizer that it was written with"));
        first.to_string()
    };
    let larger = |t: &mut Vec<Tensor>| (t[1].layout, t[1].factors) = (vec![8], vec![8]);
    assert_eq!(
        says(&larger),
        "RUN/step-000001: `b` is parameter f32[7] in the checkpoint, but parameter f32[8] in the program"
    );
    let wide = |t: &mut Vec<Tensor>| t[1].dtype = DType::F64;
    assert_eq!(
        says(&wide),
        "RUN/step-000001: `b` is parameter f32[7] in the checkpoint, but parameter f64[7] in the program"
    );
    let fewer = |t: &mut Vec<Tensor>| drop(t.pop());
    assert_eq!(
        says(&fewer),
        "RUN/step-000001: `w/m` is state f32[6, 10] in the checkpoint, but missing in the program"
    );
    let more = |t: &mut Vec<Tensor>| t.push(tensor("w/v", InputKind::State, &[6, 10], &[6, 10], &[&[], &[]]));
    assert_eq!(says(&more), "RUN/step-000001: `w/v` is missing in the checkpoint, but state f32[6, 10] in the program");
}

#[test]
fn places_without_checkpoints_are_errors() {
    let _alone = alone();
    let scratch = Scratch::new("nothing");
    let says = |path: &Path| {
        Checkpoint::latest(path).unwrap_err().to_string().replace(&scratch.0.display().to_string(), "RUN")
    };
    assert_eq!(says(&scratch.0), "RUN: no checkpoint: no directory step-N with an index.json");
    let (mesh, tensors) = small();
    let session = launch(&mesh, &tensors);
    let fault = Some(WriteFault { after: 100, kind: FaultKind::Kill });
    save(&session, &scratch.0, 1, 0, &SaveOptions { fault, ..SaveOptions::default() }).unwrap_err();
    let left = scratch.names().pop().unwrap();
    assert_eq!(
        says(&scratch.0),
        format!("RUN: no checkpoint: no directory step-N with an index.json (only interrupted writes: {left})")
    );
    let newer = scratch.0.join("step-000009");
    std::fs::create_dir(&newer).unwrap();
    let body = r#"{"format":"tpc-checkpoint","version":2}"#;
    let hash = tpc_runtime::checkpoint::hash::text(tpc_runtime::checkpoint::hash::hash(body.as_bytes()));
    std::fs::write(newer.join("index.json"), format!("{{\"hash\":\"{hash}\",\"index\":\n{body}\n}}\n")).unwrap();
    assert_eq!(
        says(&scratch.0),
        "RUN/step-000009/index.json: format version 2, but this program reads version 1: use the program that wrote it"
    );
    let file = scratch.0.join("file");
    std::fs::write(&file, b"in the way").unwrap();
    let error = save(&session, &file.join("run"), 1, 0, &SaveOptions::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { what: "cannot be made", .. }), "{error}");
}

#[test]
fn a_failed_session_is_not_saved() {
    let _alone = alone();
    let scratch = Scratch::new("failed");
    let (mesh, tensors) = small();
    let fault = Some(Fault { rank: 1, step: 0, kind: tpc_runtime::FaultKind::Panic });
    let mut session =
        Session::launch(programs(&mesh, &tensors), LaunchOptions { fault, ..LaunchOptions::default() }).unwrap();
    fill(&mut session, &tensors, 1);
    session.step().unwrap_err();
    let error = save(&session, &scratch.0, 1, 0, &SaveOptions::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Runtime(RuntimeError::Poisoned(_))), "{error}");
    assert!(scratch.names().is_empty());
}

#[test]
fn inputs_that_were_never_written_are_missing() {
    let _alone = alone();
    let (mesh, tensors) = small();
    let mut session = launch(&mesh, &tensors);
    session.write_f64("w", &[0.5; 60]).unwrap();
    let zeros = |_: &tpc_runtime::BoxRequest, to: &mut [u8]| {
        to.fill(0);
        Ok(())
    };
    for rank in 0..3 {
        session.write_box("b", rank, &mut { zeros }).unwrap();
    }
    assert_eq!(session.step(), Err(RuntimeError::Missing { name: "b".into() }));
    session.write_box("b", 3, &mut { zeros }).unwrap();
    session.step().unwrap();
}

/// 48 MiB in two tensors and their state: in addition to the arenas, at most one block per rank is held.
#[test]
fn saving_and_loading_hold_a_block_per_rank() {
    let _alone = alone();
    let scratch = Scratch::new("memory");
    let tensors = |axes: &[&[usize]]| {
        vec![
            tensor("w", InputKind::Parameter, &[2048, 1536], &[2048, 12, 128], &[axes[0], axes[1], &[]]),
            tensor("w/m", InputKind::State, &[2048, 1536], &[2048, 12, 128], &[axes[0], axes[1], &[]]),
            tensor("e", InputKind::Parameter, &[3000, 512], &[3000, 512], &[axes[0], axes[1]]),
            tensor("e/m", InputKind::State, &[3000, 512], &[3000, 512], &[axes[0], axes[1]]),
        ]
    };
    let two = Mesh::new([("tp", 2)]).unwrap();
    let four = Mesh::new([("dp", 2), ("tp", 2)]).unwrap();
    let (columns, rows) = (tensors(&[&[], &[0]]), tensors(&[&[0, 1], &[]]));
    let mut from = launch(&two, &columns);
    fill(&mut from, &columns, 1);
    let small = 512 << 10;
    let saving = peak(|| drop(save(&from, &scratch.0, 1, 0, &SaveOptions::default()).unwrap()));
    assert!(saving < small, "saving held {saving} bytes");
    let mut to = launch(&four, &rows);
    let loading = peak(|| load(&mut to, &Checkpoint::latest(&scratch.0).unwrap()).unwrap());
    assert!(loading < 4 * BLOCK + small, "loading held {loading} bytes");
    assert!(holds(&to, &rows, 1));
    println!("saving {saving}, loading {loading} bytes");
}
