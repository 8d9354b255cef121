//! Batches in the form that the model takes.

use crate::pack::Row;

/// The label of a position that does not count toward the loss, as in PyTorch.
pub const IGNORE: i64 = -100;

/// A global batch: all tensors are `[rows, seq]`, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens in each row.
    pub seq: usize,
    /// Token numbers.
    pub input_ids: Vec<i64>,
    /// The token itself if it counts toward the loss, [`IGNORE`] otherwise: models that predict the next token shift
    /// labels themselves.
    pub labels: Vec<i64>,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// The number of each token's document in its row, from 0; padding has a separate number.
    pub document_ids: Vec<i64>,
    /// The position of each token in its document, or in the part of the document that is in this row.
    pub position_ids: Vec<i64>,
    /// Number of tokens that are not padding.
    pub tokens: usize,
    /// Number of labels that count toward the loss.
    pub counted: usize,
    /// The epoch of its first row, from 0.
    pub epoch: u64,
}

impl Batch {
    /// A batch of at most `size` rows; missing rows are padding.
    pub(crate) fn new(rows: &[Row], size: usize, seq: usize, pad: u32, epoch: u64) -> Self {
        let room = || Vec::with_capacity(size * seq);
        let mut batch = Batch {
            rows: size,
            seq,
            input_ids: room(),
            labels: room(),
            attention_mask: room(),
            document_ids: room(),
            position_ids: room(),
            tokens: 0,
            counted: 0,
            epoch,
        };
        for row in rows {
            batch.push(row, pad);
        }
        let nothing = Row { tokens: Vec::new(), labels: Vec::new() };
        (rows.len()..size).for_each(|_| batch.push(&nothing, pad));
        batch
    }

    fn push(&mut self, row: &Row, pad: u32) {
        let (mut document, mut position) = (0, 0);
        for (at, (token, label)) in row.tokens.iter().zip(&row.labels).enumerate() {
            if token.begins && at > 0 {
                (document, position) = (document + 1, 0);
            }
            self.add([token.id.into(), label.map_or(IGNORE, i64::from), 1, document, position]);
            self.counted += usize::from(label.is_some());
            position += 1;
        }
        self.tokens += row.tokens.len();
        let padding = if row.tokens.is_empty() { 0 } else { document + 1 };
        for place in 0..(self.seq - row.tokens.len()) as i64 {
            self.add([pad.into(), IGNORE, 0, padding, place]);
        }
    }

    fn add(&mut self, [id, label, mask, document, position]: [i64; 5]) {
        self.input_ids.push(id);
        self.labels.push(label);
        self.attention_mask.push(mask);
        self.document_ids.push(document);
        self.position_ids.push(position);
    }
}
