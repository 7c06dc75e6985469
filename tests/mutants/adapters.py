"""Breaks of what is looked at before a library makes a model of a checkpoint, and after."""

from __future__ import annotations

from . import Mutant

_ANEW = "weights that a library makes anew"
_LATE = "a model that cannot be, found out when its weights are here"
_CODE = "code in a repository"
_SCALED = "scaled weights in a library that does not know of it"
_OTHER = "a model that is nearly what the library makes"
_GLOBAL = "a library that changes what is global"

_RANK = "weights that a rank of vLLM does without"
_PATTERNS = "options and patterns of vLLM"

_VLLM = "adapters/test_vllm.py::"
_TEST = "adapters/test_pretrained.py::"
_REFUSED = f"{_TEST}test_what_cannot_be_right_is_refused_before_the_weights_come"
_NOT_MADE = f"{_TEST}test_what_the_library_makes_no_model_of_is_refused_before_the_weights_come"
_SAME = f"{_TEST}test_arguments_mean_what_they_mean_to_the_library"

MUTANTS = (
    Mutant(
        "made-anew-silently",
        _ANEW,
        "adapters.outcome:Outcome.enforce",
        "missing = sorted(self.missing) if strict or self.nothing else []",
        "missing = sorted(self.missing) if self.nothing else []",
        (_REFUSED,),
    ),
    Mutant(
        "nothing-fits-and-nobody-says",
        _ANEW,
        "adapters.transformers_models:TransformersModel._called",
        "nothing=bool(missing) and not left",
        "nothing=False",
        (_REFUSED,),
    ),
    Mutant(
        "other-shapes-made-anew",
        _ANEW,
        "adapters.outcome:Outcome.enforce",
        "shapes = {} if other_shapes else dict(sorted(self.shapes.items()))",
        "shapes = dict(())",
        (_REFUSED,),
    ),
    Mutant(
        "made-anew-untold",
        _ANEW,
        "adapters.pretrained:_loaded",
        "call.session.notify(Warned(warning))",
        "str(warning)",
        (f"{_TEST}test_what_is_allowed_is_made_anew_and_told", _SAME),
    ),
    Mutant(
        "rehearsal-left-out",
        _LATE,
        "adapters.pretrained:_loaded",
        "if (found := await _alone(model.rehearse)) is not None:",
        "if (found := None) is not None:",
        (_REFUSED,),
    ),
    Mutant(
        "quantisation-found-out-late",
        _LATE,
        "adapters.checks:check_quantisation",
        "quantizer.validate_environment(device_map=device_map, weights_only=True)",
        "str(quantizer)",
        (_REFUSED,),
    ),
    Mutant(
        "models-made-late",
        _LATE,
        "adapters.transformers_models:TransformersModel.rehearse",
        "except Exception:\n    self._construct()\n    return None",
        "except Exception:\n    return None",
        (_NOT_MADE,),
    ),
    Mutant(
        "quantised-models-made-late",
        _LATE,
        "adapters.transformers_models:TransformersModel.rehearse",
        "self.own.keys():\n    self._construct()",
        "self.own.keys():\n    ...",
        (_NOT_MADE,),
    ),
    Mutant(
        "values-missed-by-a-rehearsal",
        _LATE,
        "adapters.transformers_models:TransformersModel.rehearse",
        "except Exception:\n    self._construct()\n    return None",
        "except Exception:\n    raise",
        (f"{_TEST}test_what_a_rehearsal_cannot_know_is_not_refused",),
    ),
    Mutant(
        "devices-looked-at-late",
        _LATE,
        "adapters.transformers_models:TransformersModel.judged",
        "check_device_map(asked.device_map)",
        "...",
        (_NOT_MADE,),
    ),
    Mutant(
        "integers-as-the-dtype-of-a-model",
        _LATE,
        "adapters.asked:torch_dtype",
        "not found.is_floating_point or found.itemsize < 2",
        "found is None",
        (_NOT_MADE,),
    ),
    Mutant(
        "raw-errors-of-a-library",
        _LATE,
        "adapters.transformers_models:TransformersModel._called",
        "with says(self.beside.name):",
        "if True:",
        (f"{_TEST}test_what_a_library_says_after_the_weights_came",),
    ),
    Mutant(
        "no-memory-is-a-refusal",
        _LATE,
        "adapters.checks:says",
        "except (AsyncfetchError, MemoryError):",
        "except AsyncfetchError:",
        (f"{_TEST}test_what_a_library_says_after_the_weights_came",),
    ),
    Mutant(
        "any-callable-as-a-class",
        _CODE,
        "adapters.transformers_models:_named_class",
        "if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):",
        "if kind is not None:",
        (_REFUSED,),
    ),
    Mutant(
        "code-run-untrusted",
        _CODE,
        "adapters.transformers_models:_class_in_code",
        "if not asked.trust_remote_code or name is None",
        "if name is None",
        (f"{_TEST}test_code_of_the_repository",),
    ),
    Mutant(
        "code-of-others",
        _CODE,
        "adapters.configs:code_of",
        'if found is not None and "--" in found:',
        'if found is not None and "---" in found:',
        (_REFUSED,),
    ),
    Mutant(
        "scales-left-out-by-a-library",
        _SCALED,
        "adapters.transformers_models:TransformersModel.judged",
        "refuse_scaled(beside)",
        "str(beside)",
        (f"{_TEST}test_scaled_weights",),
    ),
    Mutant(
        "generation-config-left-out",
        _OTHER,
        "adapters.transformers_models:TransformersModel.load",
        "if model.can_generate() and",
        "if not model.can_generate() and",
        (f"{_TEST}test_where_a_model_can_be",),
    ),
    Mutant(
        "adapters-left-out",
        _OTHER,
        "adapters.configs:read_config",
        "if adapter.is_file():",
        "if adapter.is_dir():",
        (_REFUSED,),
    ),
    Mutant(
        "libraries-side-by-side",
        _GLOBAL,
        "adapters.pretrained:_alone",
        "with _turn():",
        "if True:",
        (f"{_TEST}test_several_at_once", f"{_TEST}test_a_cancellation_waits_for_no_library"),
    ),
    Mutant(
        "rehearsals-heard",
        _GLOBAL,
        "adapters.rehearsal:forgotten",
        "handler.addFilter(silent)",
        "str(handler)",
        (f"{_TEST}test_a_rehearsal_leaves_nothing_behind",),
    ),
    Mutant(
        "rehearsals-draw-random-numbers",
        _GLOBAL,
        "adapters.rehearsal:forgotten",
        "with torch.random.fork_rng(devices=[]):",
        "if torch:",
        (f"{_TEST}test_a_rehearsal_leaves_nothing_behind",),
    ),
    Mutant(
        "libraries-waited-for",
        _GLOBAL,
        "adapters.pretrained:_alone",
        "abandon=True",
        "abandon=False",
        (f"{_TEST}test_a_cancellation_waits_for_no_library",),
    ),
    Mutant(
        "experts-of-all-ranks",
        _RANK,
        "adapters.vllm:Wanted.of",
        "keep=lambda name: not unused(name) and not skip(name)",
        "keep=lambda name: not unused(name)",
        (f"{_VLLM}test_a_rank_fetches_its_experts_alone",),
    ),
    Mutant(
        "unused-weights-too",
        _RANK,
        "adapters.vllm:Wanted.of",
        "keep=lambda name: not unused(name) and not skip(name)",
        "keep=lambda name: not skip(name)",
        (f"{_VLLM}test_a_rank_fetches_its_experts_alone",),
    ),
    Mutant(
        "prefixes-left-out",
        _RANK,
        "adapters.vllm:tensors_of",
        "wanted.prefix + name",
        "name",
        (f"{_VLLM}test_weights_come_verified_under_vllms_names",),
    ),
    Mutant(
        "revisions-that-say-more",
        _PATTERNS,
        "adapters.vllm:plain",
        '"".join(revision)',
        "str(revision)",
        (f"{_VLLM}test_weights_come_verified_under_vllms_names",),
    ),
    Mutant(
        "ignored-files-loaded",
        _PATTERNS,
        "adapters.vllm:Wanted.check",
        "if any(fnmatchcase(file.name, pattern) for pattern in ignored):",
        "if not file.name:",
        (f"{_VLLM}test_patterns_that_would_change_the_checkpoint",),
    ),
    Mutant(
        "other-files-than-vllm-wants",
        _PATTERNS,
        "adapters.vllm:Wanted.check",
        "if self.only is not None and not any",
        "if self.only is None and not any",
        (f"{_VLLM}test_patterns_that_would_change_the_checkpoint",),
    ),
    Mutant(
        "options-of-vllm-ignored",
        _PATTERNS,
        "adapters.vllm:Options.of",
        "if name not in known:",
        "if name == known:",
        (f"{_VLLM}test_options_are_checked",),
    ),
)
