# SPDX-License-Identifier: Apache-2.0
# Sourced before mpirun on one machine: more ranks than cores may run, they yield when idle, and none is bound to one core.
# Open MPI 4 reads OMPI_MCA_*, Open MPI 5 PRTE_MCA_*.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
# Containers often forbid the system call that shared-memory transfers use; without it they copy twice and work everywhere.
export OMPI_MCA_btl_vader_single_copy_mechanism=none
if [ "$(id -u)" = 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
