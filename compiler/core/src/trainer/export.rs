//! Writes the ranks' parameters as one safetensors file, under the paths of the model's modules.

use super::error::TrainerError;
use super::module::parameters;
use crate::error::Error;
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::path::{Path, PathBuf};
use tpc_ir::{DType, InputKind, ModulePath};
use tpc_runtime::checkpoint::container::{Entry, head};
use tpc_runtime::output::{self, Output, Writing};
use tpc_runtime::{RuntimeError, Session};

/// Writes `model.safetensors` in a directory. A tied parameter is written under each of its paths.
pub(super) fn save(session: &Session, aliases: &[(ModulePath, ModulePath)], dir: &Path) -> Result<PathBuf, Error> {
    let file = dir.join("model.safetensors");
    let aliases: Vec<(String, String)> = aliases.iter().map(|(a, known)| (a.to_string(), known.to_string())).collect();
    let tensors: Vec<(&str, &str, DType, &[usize])> = parameters(session)
        .flat_map(|input| {
            let (dtype, layout) = (input.binding.view.dtype, &input.binding.layout[..]);
            let also = aliases.iter().filter(|(_, known)| *known == input.name).map(|(alias, _)| alias.as_str());
            std::iter::once(&*input.name).chain(also).map(move |name| (name, &*input.name, dtype, layout))
        })
        .collect();
    let mut writing = match session.processes().process() {
        0 => begin(dir, &file, &tensors).map(Some),
        _ => Ok(None),
    };
    // Every process has parts of every tensor, even if the disk of the first is full.
    for (_, parameter, ..) in &tensors {
        let bytes = session.read_input((InputKind::Parameter, *parameter))?;
        writing = writing.and_then(|mut writing| {
            writing.as_mut().map_or(Ok(()), |file| file.write_all(&bytes))?;
            Ok(writing)
        });
    }
    let written = writing.and_then(|writing| match writing {
        Some(buffered) => buffered.into_inner().map_err(IntoInnerError::into_error)?.commit().map(drop),
        None => Ok(()),
    });
    let written = written.map_err(|source| Failed::Here(TrainerError::Save { file: file.clone(), source }));
    match session.agree("save the model", written, |()| Vec::new()) {
        Ok(_) => Ok(file),
        Err(Failed::Here(error)) => Err(error.into()),
        Err(Failed::Elsewhere(error)) => Err(error.into()),
    }
}

fn begin(dir: &Path, file: &Path, tensors: &[(&str, &str, DType, &[usize])]) -> io::Result<BufWriter<Writing>> {
    output::make_dir(dir)?;
    let entries: Vec<Entry<'_>> = tensors.iter().map(|(name, _, dtype, layout)| (*name, *dtype, *layout)).collect();
    let mut writing = BufWriter::with_capacity(1 << 20, Output::at(file)?.begin()?);
    writing.write_all(&head(&entries).0)?;
    Ok(writing)
}

/// Why the file was not written.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Here(TrainerError),
    #[error(transparent)]
    Elsewhere(#[from] RuntimeError),
}
