//! Path patterns: dotted module paths with globs per segment.

/// Whether a dotted path matches a pattern: `*` any run of characters inside a segment, `?` one
/// character, `[a-c]` one of a set, `{a,b}` one of several. `""` matches only the root.
pub fn matches(pattern: &str, path: &str) -> bool {
    alternatives(pattern).iter().any(|p| {
        let (p, s): (Vec<&str>, Vec<&str>) = (split(p), split(path));
        p.len() == s.len() && p.iter().zip(&s).all(|(p, s)| segment(p.as_bytes(), s.as_bytes()))
    })
}

fn split(path: &str) -> Vec<&str> {
    if path.is_empty() { Vec::new() } else { path.split('.').collect() }
}

/// The pattern with every `{a,b}` written out.
fn alternatives(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_string()] };
    let Some(len) = pattern[open..].find('}') else { return vec![pattern.to_string()] };
    let (head, tail) = (&pattern[..open], &pattern[open + len + 1..]);
    let options = pattern[open + 1..open + len].split(',');
    options.flat_map(|o| alternatives(&format!("{head}{o}{tail}"))).collect()
}

fn segment(p: &[u8], s: &[u8]) -> bool {
    match p.first() {
        None => s.is_empty(),
        Some(b'*') => (0..=s.len()).any(|i| segment(&p[1..], &s[i..])),
        Some(b'[') => {
            let Some(end) = p.iter().position(|&c| c == b']') else { return p == s };
            let set = &p[1..end];
            let inside = |c: u8| {
                let ranges = set.windows(3).filter(|w| w[1] == b'-').any(|w| (w[0]..=w[2]).contains(&c));
                ranges || set.contains(&c)
            };
            s.first().is_some_and(|&c| inside(c)) && segment(&p[end + 1..], &s[1..])
        }
        Some(b'?') => !s.is_empty() && segment(&p[1..], &s[1..]),
        Some(&c) => s.first() == Some(&c) && segment(&p[1..], &s[1..]),
    }
}

/// The existing paths most like a path that matches nothing, nearest first, at most three.
pub fn nearest<'a>(wanted: &str, existing: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> = existing.into_iter().map(|p| (distance(wanted, p), p)).collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, p)| p.to_string()).collect()
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_per_segment() {
        assert!(matches("layers.*.mlp", "layers.10.mlp"));
        assert!(!matches("layers.*", "layers.1.mlp"));
        assert!(matches("a.w[qkv]", "a.wq") && !matches("a.w[qkv]", "a.wo"));
        assert!(matches("a.{gate,up}_proj", "a.up_proj"));
        assert!(matches("h.[0-3].?n", "h.2.ln"));
        assert!(matches("", "") && !matches("", "a"));
    }

    #[test]
    fn a_misspelt_path_finds_its_neighbours() {
        let paths = ["layers.0.attention", "layers.0.feed_forward", "norm"];
        assert_eq!(nearest("layers.0.atention", paths)[0], "layers.0.attention");
    }
}
