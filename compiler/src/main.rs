//! The `tpc` command; everything is in [`tpc::command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tpc::command::quiet_panics();
    let code = tpc::command::run(std::env::args_os(), &mut std::io::stdout().lock(), &mut std::io::stderr());
    ExitCode::from(code)
}
