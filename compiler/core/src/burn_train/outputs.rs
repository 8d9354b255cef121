//! burn-train's outputs as results of a step.

use crate::capture::{Leaf, ResultValues, Results, Tensors, field_name};
use burn::train::{ClassificationOutput, MultiLabelClassificationOutput, RegressionOutput, SequenceOutput};

macro_rules! output {
    ($output:ident { $($field:ident),+ }) => {
        impl Tensors for $output {
            fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
                $(self.$field.leaves(Some(&field_name(prefix, stringify!($field))), out);)+
            }
        }

        impl Results for $output {
            type Values = Self;
            type Form = ();
            fn form(&self) {}
            fn restore((): &(), values: &mut ResultValues) -> Self {
                $output { $($field: values.tensor()),+ }
            }
        }
    };
}

output!(ClassificationOutput { loss, output, targets });
output!(MultiLabelClassificationOutput { loss, output, targets });
output!(RegressionOutput { loss, output, targets });

impl Tensors for SequenceOutput {
    fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
        self.loss.leaves(Some(&field_name(prefix, "loss")), out);
        self.logits.leaves(Some(&field_name(prefix, "logits")), out);
        self.predictions.leaves(Some(&field_name(prefix, "predictions")), out);
        self.targets.leaves(Some(&field_name(prefix, "targets")), out);
    }
}

impl Results for SequenceOutput {
    type Values = Self;
    /// Whether there are predictions.
    type Form = Option<()>;
    fn form(&self) -> Option<()> {
        self.predictions.form()
    }
    fn restore(predictions: &Option<()>, values: &mut ResultValues) -> Self {
        SequenceOutput {
            loss: values.tensor(),
            logits: values.tensor(),
            predictions: predictions.map(|()| values.tensor()),
            targets: values.tensor(),
        }
    }
}
