//! Features of Python that chat templates use: its JSON and its dates.

use serde_json::Value;

/// How to write a value as JSON.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Json {
    /// Spaces per level, if every element is on a separate line.
    pub(super) indent: Option<usize>,
    /// Whether the keys of objects are sorted.
    pub(super) sorted: bool,
    /// Whether characters other than ASCII are escaped.
    pub(super) ascii: bool,
}

impl Json {
    /// Formats the value like Python's `json.dumps`, with a space after each comma and colon.
    pub(super) fn text(self, value: &Value) -> String {
        let mut out = String::new();
        self.write(value, 0, &mut out);
        out
    }

    fn write(self, value: &Value, level: usize, out: &mut String) {
        match value {
            Value::Array(list) if !list.is_empty() => {
                out.push('[');
                for (at, item) in list.iter().enumerate() {
                    self.separate(at, level + 1, out);
                    self.write(item, level + 1, out);
                }
                self.line(level, out);
                out.push(']');
            }
            Value::Object(object) if !object.is_empty() => {
                let mut entries: Vec<(&String, &Value)> = object.iter().collect();
                if self.sorted {
                    entries.sort_by_key(|(key, _)| *key);
                }
                out.push('{');
                for (at, (key, item)) in entries.into_iter().enumerate() {
                    self.separate(at, level + 1, out);
                    self.string(key, out);
                    out.push_str(": ");
                    self.write(item, level + 1, out);
                }
                self.line(level, out);
                out.push('}');
            }
            Value::String(text) => self.string(text, out),
            other => out.push_str(&other.to_string()),
        }
    }

    fn separate(self, at: usize, level: usize, out: &mut String) {
        match (at, self.indent) {
            (0, _) => {}
            (_, None) => out.push_str(", "),
            (_, Some(_)) => out.push(','),
        }
        self.line(level, out);
    }

    fn line(self, level: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }

    fn string(self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || c == '\u{7f}' && self.ascii => out.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ascii && !c.is_ascii() => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a time, in seconds since 1970 in UTC, like `strftime`; `None` for an unknown directive.
pub(super) fn strftime(format: &str, now: u64) -> Option<String> {
    let (days, seconds) = (now / 86_400, now % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let name = |names: &[&'static str], at: u64| names.get(at as usize).copied().unwrap_or_default();
    let (weekday, month_name) = (name(&DAYS, days % 7), name(&MONTHS, month - 1));
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match characters.next()? {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.into(),
            'b' => month_name.chars().take(3).collect(),
            'A' => weekday.into(),
            'a' => weekday.chars().take(3).collect(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.into(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".into(),
            'z' => "+0000".into(),
            '%' => "%".into(),
            _ => return None,
        });
    }
    Some(out)
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar (Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Values from Python's `json.dumps`.
    #[test]
    fn json_is_pythons() {
        let value = json!({"b": [1, 2.5, null, true], "a": {"é": "x\n\"\u{1}😀"}, "c": [], "d": {}});
        let plain = "{\"b\": [1, 2.5, null, true], \"a\": {\"é\": \"x\\n\\\"\\u0001😀\"}, \"c\": [], \"d\": {}}";
        assert_eq!(Json::default().text(&value), plain);
        let indented = Json { indent: Some(2), sorted: true, ascii: true };
        assert_eq!(
            indented.text(&value),
            "{\n  \"a\": {\n    \"\\u00e9\": \"x\\n\\\"\\u0001\\ud83d\\ude00\"\n  },\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"c\": [],\n  \"d\": {}\n}"
        );
    }

    /// Values from Python's `datetime`.
    #[test]
    fn dates_are_pythons() {
        let leap = 1_709_210_096; // 2024-02-29 12:34:56
        assert_eq!(strftime("%d %b %Y", leap).unwrap(), "29 Feb 2024");
        assert_eq!(
            strftime("%A %a %B %y-%m-%e %H:%M:%S %I%p %%", leap).unwrap(),
            "Thursday Thu February 24-02-29 12:34:56 12PM %"
        );
        assert_eq!(strftime("%F %T", 0).unwrap(), "1970-01-01 00:00:00");
        assert_eq!(strftime("%F", 4_102_444_799).unwrap(), "2099-12-31");
        assert_eq!(strftime("%Q", 0), None);
        assert_eq!(strftime("%", 0), None);
    }
}
