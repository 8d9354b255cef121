//! The resources of a multiprocessor that compiled kernels use, from the assembler's output (`ptxas --verbose`, whose
//! lines are in NVRTC's log).

/// The resources of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of stack per thread: spilled registers, arrays that are indexed at run time, calls.
    pub stack: u32,
    /// Bytes of registers that are spilled to the stack and read back.
    pub spilled: u32,
}

/// The number before some words.
fn before(line: &str, words: &str) -> Option<u32> {
    line.split_once(words)?.0.split([' ', ',']).rfind(|w| !w.is_empty())?.parse().ok()
}

/// The resources of every kernel in a log.
pub fn of_log(log: &str) -> Vec<Usage> {
    let mut found: Vec<Usage> = Vec::new();
    // Functions that are called, not launched, have their own properties.
    let mut in_entry = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            found.push(Usage { kernel, ..Usage::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            in_entry = found.last().is_some_and(|u| u.kernel == name.trim());
        } else if let Some(u) = found.last_mut() {
            if let (true, Some(stack)) = (in_entry, before(line, " bytes stack frame")) {
                u.stack = stack;
                let spilled = [" bytes spill stores", " bytes spill loads"].map(|w| before(line, w).unwrap_or(0));
                u.spilled = spilled[0].max(spilled[1]);
            }
            if let Some((_, rest)) = line.split_once("Used ") {
                u.registers = before(rest, " registers").unwrap_or(0);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_words_are_understood() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'rows_1' for 'sm_90'\n\
            ptxas info    : Function properties for rows_1\n\
            ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 128 registers, used 1 barriers, 4096 bytes smem\n";
        let usage = Usage { kernel: "rows_1".into(), registers: 128, stack: 16, spilled: 12 };
        assert_eq!(of_log(log), vec![usage]);
    }
}
