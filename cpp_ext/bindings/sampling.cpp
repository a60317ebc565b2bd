// Choosing tokens.
#include "ops/sampling.h"

#include <cmath>

#include "bindings/arrays.h"
#include "bindings/module.h"

namespace tensor_ops::bindings {
namespace {

double up_to_one(const Argument& argument, bool inclusive) {
    const double value = number(argument, 0.0, true);
    if (value > 1.0 || (value == 1.0 && !inclusive))
        value_error(std::string(argument.op) + ": " + argument.name + " is " +
                    text(py::float_(value)) + "; expected " + (inclusive ? "at most" : "below") +
                    " 1.");
    return value;
}

std::size_t sample(py::handle logits_object, py::handle draw, py::handle temperature,
                   py::handle top_k, py::handle top_p, py::handle min_p) {
    const Array logits = float_array("sample", "logits", logits_object);
    logits.require_axes(1, "[vocab]");
    if (logits.size() == 0)
        value_error("sample: logits has shape (0,); expected at least one token's.");
    const double u = up_to_one({"sample", "draw", draw}, false);
    const Sampling sampling{
        .temperature = number({"sample", "temperature", temperature}, 0.0, true),
        .top_k = count({"sample", "top_k", top_k}, 0),
        .top_p = number({"sample", "top_p", top_p}, 0.0, false),
        .min_p = up_to_one({"sample", "min_p", min_p}, true),
    };
    const std::span<const float> values(logits.floats(), logits.size());
    const std::size_t token = tensor_ops::sample(values, sampling, u);
    if (!std::isfinite(values[token]))
        value_error("sample: the largest logit is " + text(py::float_(values[token])) +
                    "; expected a finite number.");
    return token;
}

}  // namespace

void bind_sampling(py::module_& m) {
    using py::arg;
    m.def("sample", sample, arg("logits"), arg("draw"), py::kw_only(), arg("temperature") = 1.0,
          arg("top_k") = 0, arg("top_p") = 1.0, arg("min_p") = 0.0,
          "The token that a draw selects.\n\n"
          "logits: float32 [vocab]; draw: a number from 0 to below 1.\n"
          "top_k: keeps only so many of the likeliest; 0 is all. top_p: of these, keeps only the "
          "likeliest that together reach this share. min_p, 0 to 1: keeps only those at least this "
          "fraction as likely as the likeliest. The token is drawn from those that are left, each "
          "weighted by its probability to the power of 1 / temperature; 0 takes the likeliest. Of "
          "equals, the lower id counts as the likelier.\n"
          "ValueError if the largest logit is NaN or infinite. Returns the token's id.");
}

}  // namespace tensor_ops::bindings
