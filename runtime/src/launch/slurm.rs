//! SLURM's variables about the nodes of a step: <https://slurm.schedmd.com/srun.html>, output environment variables.

/// The first node of a list such as `rack[2-3,7]n01,login`: `rack2n01`. The numbering of a step's tasks starts there.
pub(super) fn first_node(list: &str) -> String {
    let mut name = String::new();
    // In a bracket, only the first number counts.
    let (mut within, mut skipped) = (false, false);
    for c in list.trim().chars() {
        match (within, c) {
            (false, ',') => break,
            (false, '[') => (within, skipped) = (true, false),
            (true, ']') => within = false,
            (true, '-' | ',') => skipped = true,
            (true, _) if skipped => {}
            (_, c) => name.push(c),
        }
    }
    name
}

/// Number of tasks on the node with this number, from a list such as `3,1(x2)`; `None` if the text is not such a list.
pub(super) fn tasks_on(tasks_per_node: &str, node: usize) -> Option<usize> {
    let mut before = 0usize;
    for part in tasks_per_node.trim().split(',') {
        let (tasks, times) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        before = before.saturating_add(times);
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_of_a_list() {
        let lists = [
            ("vm", "vm"),
            ("n[1-3]", "n1"),
            ("n[07,9-12],m1", "n07"),
            ("a-b,c", "a-b"),
            ("rack[2-3,7]n[01-04].site", "rack2n01.site"),
            ("", ""),
        ];
        lists.iter().for_each(|(list, first)| assert_eq!(first_node(list), *first, "{list}"));
    }

    #[test]
    fn tasks_of_each_node() {
        let of = |text: &str| (0..5).map(|node| tasks_on(text, node)).collect::<Vec<_>>();
        assert_eq!(of("3,1(x2)"), [Some(3), Some(1), Some(1), None, None]);
        assert_eq!(of("2(x4),7"), [Some(2), Some(2), Some(2), Some(2), Some(7)]);
        assert_eq!(of("2(4)"), [None; 5]);
        assert_eq!(of(""), [None; 5]);
        assert_eq!(of("1(x18446744073709551615),2(x18446744073709551615)"), [Some(1); 5]);
    }
}
