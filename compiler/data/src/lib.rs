//! Token batches from text, for training: read from files, tokenized, packed, and in an order that can be left and taken up again.
//!
//! ```text
//! files → documents → tokens → windows of rows → batches
//!          source      tokenizer, encode   pack      stream
//! ```
//!
//! | question | module |
//! |---|---|
//! | which documents files have, in any format and compression | [`source`] |
//! | text as tokens and back, conversations, training a tokenizer | [`tokenizer`] |
//! | which tokens of a document count in the loss | [`encode`] |
//! | rows of tokens | [`pack`] |
//! | what is held out, the order of an epoch, a place in it | [`order`] |
//! | batches, made by a thread beside the model | [`stream`] |
//! | what can go wrong | [`error`] |
//!
//! A batch is a function of the files, the tokenizer, the seed, the options and a [`Position`]: not of the mesh, and not of how often the
//! run was interrupted. A corpus may be larger than memory: what stays in memory is eight bytes for each document.

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
pub use order::{Part, Position};
pub use pack::{Objective, Packing};
pub use source::{Corpus, Format};
pub use stream::{Recipe, Stream, piece};
pub use tokenizer::{Tokenizer, TokenizerError};
