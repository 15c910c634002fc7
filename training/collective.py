"""Workers that train together by TensorFlow's collective operations, those under MultiWorkerMirroredStrategy, in graph mode."""
import contextlib
import hashlib
import inspect
import itertools
import json
import os

from tf_compat import TENSORFLOW_VERSION, computes_on_gpu, tf

from tensorflow.python.ops import collective_ops
from tensorflow.python.training.monitored_session import _MonitoredSession
from tensorpack.callbacks import CallbackFactory
from tensorpack.tfutils.sesscreate import ReuseSessionCreator
from tensorpack.tfutils.tower import TrainTowerContext
from tensorpack.train.tower import SingleCostTrainer
from tensorpack.utils.develop import HIDE_DOC

from command_line import InputError
from training.workers import OneWorker

GROUP = 1        # the key of the one group, that of all workers
SAMPLE = 64      # files of which the content is compared among the workers
# What TensorFlow raises in the others when a worker ends.
BROKEN = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.CancelledError,
          tf.errors.InternalError, tf.errors.UnknownError, tf.errors.FailedPreconditionError)


def fingerprint(images):
    """A digest of a list of [path, label]: of all names in their folder, and the bytes of SAMPLE files, evenly spread."""
    digest = hashlib.sha256()
    start = len(os.path.commonprefix([os.path.dirname(path) for path, _ in images]))
    for path, label in images:
        digest.update(('%s %d\n' % (path[start:], label)).encode('utf-8', 'surrogateescape'))
    for path, _ in images[::max(1, len(images) // SAMPLE)]:
        content = b''
        with contextlib.suppress(OSError), open(path, 'rb') as f:    # what is missing, the reader reports
            content = f.read()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


class CollectiveWorkers(OneWorker):
    """The workers of a cluster.Cluster, one process for each GPU, on one machine or more.

    Args:
        watch (watch.Watch): their connections.
        gpu (str): --gpu of this worker, or None: the one of its number among the workers of its host.
    """

    has_towers, splits_validation = False, True

    def __init__(self, watch, gpu):
        cluster = watch.cluster
        self.watch, self.rank, self.size = watch, cluster.worker, cluster.size
        self.local_size, self.local_rank = len(cluster.local), cluster.local.index(cluster.worker)
        self.gpu = computes_on_gpu()
        self.pinned = gpu is not None
        self.keys, self.before, self.server = itertools.count(1), [], None

    def broadcast(self, value):
        return self.watch.broadcast(value)

    def add(self, values):
        found = self.watch.gather(values)
        return self.watch.broadcast(None if found is None else [sum(column) for column in zip(*found)])

    def check(self, options, images):
        mine = dict(options, TensorFlow=TENSORFLOW_VERSION, **{'training images': fingerprint(images)})
        mine = json.loads(json.dumps(mine))    # as theirs arrive
        name = self.watch.cluster.name
        for worker, theirs in enumerate(self.watch.gather(mine) or ()):
            for option in sorted(set(mine) | set(theirs)):
                if mine.get(option) != theirs.get(option):
                    what = (option, theirs.get(option), mine.get(option))
                    raise InputError("%s has other training images than worker 0: give all the same" % name(worker)
                                     if option == 'training images' else
                                     "%s has %s %s, and worker 0 %s: start all workers alike" % ((name(worker),) + what))

    def sum(self, tensor, name):
        # One after the other, in all workers alike, as NCCL wants it. TensorFlow 1 wants a device.
        with tf.control_dependencies(self.before), tf.device('/gpu:0' if self.gpu else '/cpu:0'):
            total = all_reduce(tf.identity(tensor, name=name), self.size, next(self.keys), 'nccl' if self.gpu else 'ring')
        self.before = [total]
        return total

    def broadcast_op(self, variables):
        """An operation that gives all workers the values that worker 0 has. A sum with zeros is a broadcast."""
        kinds, assigned, self.before = {}, [], []
        for variable in variables:
            kinds.setdefault(variable.dtype.base_dtype, []).append(variable)
        for dtype, those in sorted(kinds.items(), key=lambda item: item[0].name):
            values = [tf.identity(v) if self.rank == 0 else tf.zeros(v.shape, dtype) for v in those]
            assigned += [tf.assign(v, value) for v, value in zip(those, self.sum_packed(values, 'broadcast'))]
        return tf.group(*assigned)

    def sum_packed(self, tensors, name):
        """The sums of tensors of one dtype: one operation for all, as each has a latency."""
        flat = self.sum(tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0), name)
        sizes = [tensor.shape.num_elements() for tensor in tensors]
        return [tf.reshape(part, tensor.shape) for part, tensor in zip(tf.split(flat, sizes), tensors)]

    def adapt(self, creator):
        """Leads the sessions of a NewSessionCreator to this worker's server, which listens on all of the host's interfaces."""
        config = creator.config
        config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        config.device_filters.append('/job:worker/task:%d' % self.rank)
        if not self.gpu:
            config.device_count['GPU'] = 0
        elif not self.pinned and ',' in os.environ.get('CUDA_VISIBLE_DEVICES', ','):    # else the scheduler has chosen one
            config.gpu_options.visible_device_list = str(self.local_rank)
        if self.gpu and hasattr(config.experimental, 'collective_nccl'):
            config.experimental.collective_nccl = True
        if self.server is None:
            cluster = self.watch.cluster
            try:
                self.server = tf.train.Server({'worker': list(cluster.hosts)}, 'worker', self.rank, config=config)
            except tf.errors.OpError as error:
                raise InputError("TensorFlow cannot listen at %s (%s): name another port in --hosts or TF_CONFIG"
                                 % (cluster.hosts[self.rank], error.message.splitlines()[0]))
            self.add([0])    # all servers are there
        creator.target = self.server.target
        return creator

    def trainer(self, gpus, towers):
        return CollectiveTrainer(self)

    def explain(self, error):
        if isinstance(error, BROKEN):
            self.watch.wait_to_be_ended()    # by its line, which names the worker

    def agree(self):
        self.watch.together = True

    def finish(self):
        self.watch.finish()


def all_reduce(tensor, workers, key, hint):
    """The sum over the workers. TensorFlow 1.13 has no choice of how."""
    options = {'communication_hint': hint}
    known = inspect.signature(collective_ops.all_reduce).parameters
    return collective_ops.all_reduce(tensor, workers, GROUP, key, 'Add', 'Id',
                                     **{name: value for name, value in options.items() if name in known})


class CollectiveTrainer(SingleCostTrainer):
    """As Tensorpack's HorovodTrainer, with one collective operation for all gradients.

    After each epoch worker 0 gives all its variables: BN's statistics are of its own images in each.
    """

    def __init__(self, workers):
        self.workers = workers
        self.is_chief = workers.rank == 0
        super(CollectiveTrainer, self).__init__()

    def _setup_graph(self, input, get_cost_fn, get_opt_fn):
        with TrainTowerContext(''):
            gradients = self._make_get_grad_fn(input, get_cost_fn, get_opt_fn)()
            with tf.name_scope('AllReduce'):
                sums = self.workers.sum_packed([gradient for gradient, _ in gradients], 'gradients')
            self.train_op = get_opt_fn().apply_gradients(
                [(total / self.workers.size, variable) for total, (_, variable) in zip(sums, gradients)], name='train_op')
        return [CallbackFactory(trigger=self.broadcast).set_chief_only(False)]

    def broadcast(self, _):
        self.sess.run(self.broadcast_op)

    @HIDE_DOC
    def initialize(self, session_creator, session_init):
        self.broadcast_op = self.workers.broadcast_op([v for v in tf.global_variables() if v.dtype.base_dtype != tf.bool])
        super(CollectiveTrainer, self).initialize(self.workers.adapt(session_creator), session_init)
        self.sess.run(self.broadcast_op)

    @HIDE_DOC
    def initialize_hooks(self):
        """Without recovery: MonitoredSession would go on, after an UnavailableError, with a session that is closed."""
        self.hooked_sess = _MonitoredSession(ReuseSessionCreator(self.sess), self._callbacks.get_hooks(), should_recover=False)
