//! Token batches from text, for training: read from files, tokenized and packed, in an order that can be interrupted
//! and resumed.
//!
//! ```text
//! files → documents → tokens → windows of rows → batches
//!          source      tokenizer, encode   pack      stream
//! ```
//!
//! | question | module |
//! |---|---|
//! | the documents in files of any format and compression | [`source`] |
//! | encoding and decoding text, conversations, training a tokenizer | [`tokenizer`] |
//! | which tokens of a document count toward the loss | [`encode`] |
//! | rows of tokens | [`pack`] |
//! | held-out documents, the order of an epoch, a position in it | [`order`] |
//! | batches, made by a thread while the model works | [`stream`] |
//! | errors | [`error`] |
//!
//! A batch is a function of the files, the tokenizer, the seed, the options and a [`Position`]. It does not depend on
//! the mesh or on interruptions of the run. A corpus may be larger than memory: eight bytes per document stay in
//! memory.

pub mod batch;
pub mod encode;
pub mod error;
pub mod order;
pub mod pack;
pub mod source;
pub mod stream;
pub mod tokenizer;

pub use batch::Batch;
pub use encode::LossOn;
pub use error::DataError;
pub use order::{Position, Split};
pub use pack::{Objective, Packing};
pub use source::{Corpus, Format};
pub use stream::{Recipe, Stream, piece};
pub use tokenizer::{Tokenizer, TokenizerError};
