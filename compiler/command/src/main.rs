//! The `tpc` command; everything is in [`tpc_command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tpc_command::quiet_panics();
    let code = tpc_command::run(std::env::args_os(), &mut std::io::stdout().lock(), &mut std::io::stderr());
    ExitCode::from(code)
}
