"""Mutual-information knowledge distillation for Keras on TensorFlow."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_mikd runs on the TensorFlow backend of Keras. "
        f"Received: backend={_keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow."
    )

from keras_mikd import bounds as bounds
from keras_mikd import datasets as datasets
from keras_mikd import figures as figures
from keras_mikd import models as models
from keras_mikd.batches import with_index as with_index
from keras_mikd.cache.teacher_cache import TeacherCache as TeacherCache
from keras_mikd.checkpoints.exact_resume import ExactResume as ExactResume
from keras_mikd.checkpoints.student_checkpoint import StudentCheckpoint as StudentCheckpoint
from keras_mikd.comparison.compare import compare as compare
from keras_mikd.comparison.report import Comparison as Comparison
from keras_mikd.critics.critic import ConcatCritic as ConcatCritic
from keras_mikd.critics.critic import Critic as Critic
from keras_mikd.critics.critic import SeparableCritic as SeparableCritic
from keras_mikd.detection.coco_metrics import coco_metrics as coco_metrics
from keras_mikd.detection.detector_distiller import DetectorDistiller as DetectorDistiller
from keras_mikd.detection.self_detector_distiller import (
    SelfDetectorDistiller as SelfDetectorDistiller,
)
from keras_mikd.distillers import recipes as recipes
from keras_mikd.distillers.callbacks import TensorBoard as TensorBoard
from keras_mikd.distillers.distiller import Distiller as Distiller
from keras_mikd.distillers.mimkd_distiller import MIMKDDistiller as MIMKDDistiller
from keras_mikd.distillers.muse_distiller import MUSEDistiller as MUSEDistiller
from keras_mikd.distillers.mutual_distiller import MutualDistiller as MutualDistiller
from keras_mikd.distillers.self_distiller import SelfDistiller as SelfDistiller
from keras_mikd.distillers.vid_distiller import VIDDistiller as VIDDistiller
from keras_mikd.export.latency import Latency as Latency
from keras_mikd.export.latency import measure_latency as measure_latency
from keras_mikd.export.quantization_aware import is_quantization_aware as is_quantization_aware
from keras_mikd.export.quantization_aware import quantization_aware as quantization_aware
from keras_mikd.export.tflite import TFLiteReport as TFLiteReport
from keras_mikd.export.tflite import export_tflite as export_tflite
from keras_mikd.features.feature_taps import FeatureTaps as FeatureTaps
from keras_mikd.features.stages import pair_stages as pair_stages
from keras_mikd.features.stages import stages as stages
from keras_mikd.losses.activation_boundary import ActivationBoundary as ActivationBoundary
from keras_mikd.losses.attention_transfer import AttentionTransfer as AttentionTransfer
from keras_mikd.losses.be_your_own_teacher import BeYourOwnTeacher as BeYourOwnTeacher
from keras_mikd.losses.correlation_congruence import (
    CorrelationCongruence as CorrelationCongruence,
)
from keras_mikd.losses.crd import CRD as CRD
from keras_mikd.losses.dist import DIST as DIST
from keras_mikd.losses.distillation_loss import DistillationLoss as DistillationLoss
from keras_mikd.losses.dkd import DKD as DKD
from keras_mikd.losses.factor_transfer import FactorTransfer as FactorTransfer
from keras_mikd.losses.fsp import FSP as FSP
from keras_mikd.losses.gaussian_vid_head import GaussianVIDHead as GaussianVIDHead
from keras_mikd.losses.hint import Hint as Hint
from keras_mikd.losses.itrd import ITRD as ITRD
from keras_mikd.losses.jsd_critic import JSDCritic as JSDCritic
from keras_mikd.losses.keras_loss_adapter import KerasLossAdapter as KerasLossAdapter
from keras_mikd.losses.lwf import LwF as LwF
from keras_mikd.losses.muse import MUSE as MUSE
from keras_mikd.losses.nst import NST as NST
from keras_mikd.losses.pkt import PKT as PKT
from keras_mikd.losses.queue_relation import QueueRelation as QueueRelation
from keras_mikd.losses.review_kd import ReviewKD as ReviewKD
from keras_mikd.losses.rkd import RKD as RKD
from keras_mikd.losses.rld import RLD as RLD
from keras_mikd.losses.similarity_preserving import SimilarityPreserving as SimilarityPreserving
from keras_mikd.losses.soft_targets import SoftTargets as SoftTargets
from keras_mikd.losses.wttm import WTTM as WTTM
from keras_mikd.mcmi.cmi_regularizer import CMIRegularizer as CMIRegularizer
from keras_mikd.mcmi.cmi_report import CMIReport as CMIReport
from keras_mikd.mcmi.cmi_report import measure_cmi as measure_cmi
from keras_mikd.mcmi.conditional_mutual_information import (
    ConditionalMutualInformation as ConditionalMutualInformation,
)
from keras_mikd.mcmi.log_likelihood_guard import LogLikelihoodGuard as LogLikelihoodGuard
from keras_mikd.mcmi.mcmi_teacher import MCMITeacher as MCMITeacher
from keras_mikd.metrics.gaussian_information import GaussianInformation as GaussianInformation
from keras_mikd.metrics.mutual_information import MutualInformation as MutualInformation

__version__ = "0.1.0"
