//! Why weights could not be loaded, saved or initialized.

use crate::models::ModelError;
use tpc_runtime::RuntimeError;

/// Why weights could not be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An error of the files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the session.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Why parameters could not be initialized.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Parameters that are not drawn element by element, and whose values were not given.
    #[error(
        "{} not drawn element by element but computed by the module{}: pass the values from `capture::initial_values` with the function that builds the module to `initialize_with`, or train with `Trainer::new`, which does",
        parameters_are(.parameters),
        by_operations(.operations)
    )]
    Computed {
        /// The parameters.
        parameters: Vec<String>,
        /// The operations that compute the first of them, as far as they are known.
        operations: Vec<String>,
    },
    /// An error of the session.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// The beginning of a message about some parameters.
fn parameters_are(names: &[String]) -> String {
    const MOST: usize = 3;
    let shown = names.iter().take(MOST).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len() {
        1 => format!("the initial value of {shown} is"),
        n if n > MOST => format!("the initial values of {shown} and {} more are", n - MOST),
        _ => format!("the initial values of {shown} are"),
    }
}

fn by_operations(operations: &[String]) -> String {
    const MOST: usize = 5;
    let shown = operations.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    match operations.len() {
        0 => String::new(),
        n if n > MOST => format!(" ({shown}, …)"),
        _ => format!(" ({shown})"),
    }
}
