// Every metric of Switchyard, once: name, type, what it says. docs/reference/metrics.md lists the
// same for readers. A name's prefix is the room that reports it; the label `service` is added to
// each, so that the embedded server's one page tells gateway, router and worker apart. Units are in
// the names.
#pragma once

#include <span>

namespace switchyard::telemetry {

enum class MetricType { kCounter, kGauge, kHistogram };

struct MetricDef {
  const char* name;
  MetricType type;
  const char* help;
  std::span<const double> buckets = {};  // upper bounds of a histogram
};

// Seconds, from a kernel's time to a long request's.
inline constexpr double kShortSeconds[] = {1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3,
                                           5e-3, 1e-2, 2e-2, 5e-2, 0.1,  0.2,  0.5,  1.0};
inline constexpr double kLongSeconds[] = {1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2,
                                          0.5,  1,    2,    5,    10,   20,   50,  100};
inline constexpr double kFewCounts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
inline constexpr double kShares[] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1};
inline constexpr double kCounts[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};

using enum MetricType;

// ---- every service ----
inline constexpr MetricDef kBuildInfo{"switchyard_build_info", kGauge,
                                      "1; the labels say what runs"};
inline constexpr MetricDef kReady{"switchyard_ready", kGauge, "1 while requests are taken, else 0"};
inline constexpr MetricDef kBugs{"switchyard_bugs_total", kCounter,
                                 "Surprises that were survived; each is a bug to report"};
inline constexpr MetricDef kGrpcErrors{
    "switchyard_grpc_errors_total", kCounter,
    "Calls that ended with another status than OK, by method and code"};

// ---- discovery, of whichever service uses it ----
inline constexpr MetricDef kEtcdSilentSeconds{
    "switchyard_etcd_silent_seconds", kGauge,
    "Time since the last word of etcd's; 0 while a watch stands"};
inline constexpr MetricDef kEtcdErrors{"switchyard_etcd_errors_total", kCounter,
                                       "Calls to etcd and watches that failed"};
inline constexpr MetricDef kDnsFailures{"switchyard_dns_failures_total", kCounter,
                                        "Names of peers that could not be resolved, each time"};

// ---- gateway ----
inline constexpr MetricDef kGatewayRequests{"switchyard_gateway_requests_total", kCounter,
                                            "Requests that ended, by api, route and status code"};
inline constexpr MetricDef kGatewayRequestSeconds{"switchyard_gateway_request_seconds", kHistogram,
                                                  "Time from a request to its last byte",
                                                  kLongSeconds};
inline constexpr MetricDef kGatewayFirstTokenSeconds{
    "switchyard_gateway_time_to_first_token_seconds", kHistogram,
    "Time from a request to its first token", kLongSeconds};
inline constexpr MetricDef kGatewayInterTokenSeconds{
    "switchyard_gateway_inter_token_seconds", kHistogram, "Time between two tokens of a choice",
    kShortSeconds};
inline constexpr MetricDef kGatewayOpenRequests{"switchyard_gateway_open_requests", kGauge,
                                                "Requests being served"};
inline constexpr MetricDef kGatewayConnections{"switchyard_gateway_connections", kGauge,
                                               "Open HTTP connections"};
inline constexpr MetricDef kGatewayHttpBytes{"switchyard_gateway_http_bytes_total", kCounter,
                                             "Bytes of HTTP connections, by direction"};
inline constexpr MetricDef kGatewayCutOff{"switchyard_gateway_clients_cut_off_total", kCounter,
                                          "HTTP clients that were too slow or sent too much"};
inline constexpr MetricDef kGatewayRefusedConnections{
    "switchyard_gateway_refused_connections_total", kCounter,
    "HTTP connections that were refused because too many were open"};
inline constexpr MetricDef kGatewayPromptTokens{"switchyard_gateway_prompt_tokens_total", kCounter,
                                                "Tokens of prompts that were sent to routers"};
inline constexpr MetricDef kGatewayOutputTokens{"switchyard_gateway_output_tokens_total", kCounter,
                                                "Tokens that came back from routers"};
inline constexpr MetricDef kGatewayResumed{
    "switchyard_gateway_resumed_streams_total", kCounter,
    "Times that a stream went on at another router, by why the one before was out: broken, ended, "
    "silent or refused"};
inline constexpr MetricDef kGatewayStallSeconds{
    "switchyard_gateway_resume_stall_seconds", kHistogram,
    "Time from the loss of a stream's router to its next token", kLongSeconds};
inline constexpr MetricDef kGatewayStaleTokens{
    "switchyard_gateway_stale_tokens_total", kCounter,
    "Tokens of routers that had been given up, or that had come before: not passed on"};
inline constexpr MetricDef kGatewayDegraded{
    "switchyard_gateway_degraded_responses_total", kCounter,
    "Requests with a choice for which experts that were gone were replaced, by policy"};
inline constexpr MetricDef kGatewayRouterReady{"switchyard_gateway_router_ready", kGauge,
                                               "1 while that router takes requests, else 0"};

// ---- router ----
inline constexpr MetricDef kRouterRequests{"switchyard_router_requests_total", kCounter,
                                           "Choices that ended, by finish reason"};
inline constexpr MetricDef kRouterRefused{"switchyard_router_refused_requests_total", kCounter,
                                          "Requests that were refused, by status code"};
inline constexpr MetricDef kRouterFirstTokenSeconds{
    "switchyard_router_time_to_first_token_seconds", kHistogram,
    "Time from a request's arrival to its first token", kLongSeconds};
inline constexpr MetricDef kRouterInterTokenSeconds{
    "switchyard_router_inter_token_seconds", kHistogram, "Time between two tokens of a sequence",
    kShortSeconds};
inline constexpr MetricDef kRouterQueueSeconds{"switchyard_router_queue_seconds", kHistogram,
                                               "Time that a request waited for its first step",
                                               kLongSeconds};
inline constexpr MetricDef kRouterRunning{"switchyard_router_running_sequences", kGauge,
                                          "Sequences in the batch"};
inline constexpr MetricDef kRouterWaiting{"switchyard_router_waiting_requests", kGauge,
                                          "Requests that wait for a place in the batch"};
inline constexpr MetricDef kRouterKvUsed{"switchyard_router_kv_blocks_used", kGauge,
                                         "Blocks of the KV cache in use"};
inline constexpr MetricDef kRouterKvBlocks{"switchyard_router_kv_blocks", kGauge,
                                           "Blocks of the KV cache"};
inline constexpr MetricDef kRouterKvCached{
    "switchyard_router_kv_blocks_cached", kGauge,
    "Blocks of the KV cache that are not in use but can be found by their prefix"};
inline constexpr MetricDef kRouterPrefixQueries{
    "switchyard_router_prefix_cache_queried_tokens_total", kCounter,
    "Tokens of admitted sequences that were looked for in the prefix cache"};
inline constexpr MetricDef kRouterPrefixHits{
    "switchyard_router_prefix_cache_hit_tokens_total", kCounter,
    "Tokens of admitted sequences that the prefix cache had"};
inline constexpr MetricDef kRouterDrafts{"switchyard_router_draft_tokens_total", kCounter,
                                         "Tokens that were guessed and computed"};
inline constexpr MetricDef kRouterAccepted{"switchyard_router_accepted_draft_tokens_total",
                                           kCounter, "Of these, the ones that were right"};
inline constexpr MetricDef kRouterPromptTokens{"switchyard_router_prompt_tokens_total", kCounter,
                                               "Prompt tokens of choices that ended"};
inline constexpr MetricDef kRouterOutputTokens{"switchyard_router_output_tokens_total", kCounter,
                                               "Output tokens of choices that ended"};
inline constexpr MetricDef kRouterSteps{"switchyard_router_steps_total", kCounter, "Engine steps"};
inline constexpr MetricDef kRouterStepSeconds{"switchyard_router_step_seconds", kHistogram,
                                              "Time of an engine step", kShortSeconds};
inline constexpr MetricDef kRouterHalvedSteps{
    "switchyard_router_halved_steps_total", kCounter,
    "Engine steps that ran as two micro-batches, one computing while the other's rows were out"};
inline constexpr MetricDef kRouterExpertWaitSeconds{
    "switchyard_router_expert_wait_seconds_total", kCounter,
    "Time that the engine thread waited for experts with nothing to do"};
inline constexpr MetricDef kRouterEngineSeconds{
    "switchyard_router_engine_seconds_total", kCounter,
    "Time of the engine thread but for its waits for requests"};
inline constexpr MetricDef kRouterKernelSeconds{
    "switchyard_router_kernel_seconds_total", kCounter,
    "Time that this process's compute pool was at work; embedded, experts included"};
inline constexpr MetricDef kRouterStepRows{"switchyard_router_step_rows", kHistogram,
                                           "Tokens of a step, prefill and decode together",
                                           kCounts};
inline constexpr MetricDef kRouterStepSequences{"switchyard_router_step_sequences", kHistogram,
                                                "Sequences of a step", kCounts};
inline constexpr MetricDef kRouterPrefillRows{
    "switchyard_router_prefill_rows_total", kCounter,
    "Prompt tokens that were computed, also again after preemption"};
inline constexpr MetricDef kRouterPreemptions{"switchyard_router_preemptions_total", kCounter,
                                              "Sequences that gave their KV blocks up for others"};
inline constexpr MetricDef kRouterStreams{"switchyard_router_gateway_streams", kGauge,
                                          "Connected gateways"};
inline constexpr MetricDef kRouterSlowStreams{
    "switchyard_router_slow_streams_total", kCounter,
    "Gateway streams that were ended because they did not read"};
inline constexpr MetricDef kRouterExpertImbalance{
    "switchyard_router_expert_imbalance_ratio", kGauge,
    "Rows of a layer's busiest expert over the mean of its experts, since the start"};
inline constexpr MetricDef kRouterExpertWindowImbalance{
    "switchyard_router_expert_window_imbalance_ratio", kGauge,
    "Rows of a layer's busiest expert over the mean of its experts, over the last 10 s"};
inline constexpr MetricDef kRouterExpertRows{
    "switchyard_router_expert_rows_total", kCounter,
    "Rows that were routed to an expert, each once, however often it was sent"};
inline constexpr MetricDef kRouterRoutingRows{
    "switchyard_router_routing_rows_total", kCounter,
    "Rows of MoE layers under a routing policy, by policy"};
inline constexpr MetricDef kRouterRoutingChanged{
    "switchyard_router_routing_changed_rows_total", kCounter,
    "Of these, rows that got other experts than the model's gate chose"};
inline constexpr MetricDef kRouterRoutingExperts{"switchyard_router_routing_experts", kHistogram,
                                                 "Experts of a row under a routing policy",
                                                 kFewCounts};
inline constexpr MetricDef kRouterRoutingEntropy{
    "switchyard_router_routing_entropy_ratio", kHistogram,
    "Entropy of a row's gate over the greatest possible, with entropy-aware routing", kShares};
inline constexpr MetricDef kRouterRoutingFallbacks{
    "switchyard_router_routing_fallback_rows_total", kCounter,
    "Rows that got the fallback expert of entropy-aware routing"};
inline constexpr MetricDef kRouterRoutingOverflow{
    "switchyard_router_routing_overflow_rows_total", kCounter,
    "(row, expert) pairs beyond an expert's capacity, by outcome: moved to the next best, or "
    "dropped"};
inline constexpr MetricDef kRouterLostRows{"switchyard_router_lost_rows_total", kCounter,
                                           "Rows that no worker computed"};
inline constexpr MetricDef kRouterDegradedRows{
    "switchyard_router_degraded_rows_total", kCounter,
    "Tokens that were computed with experts in place of some that were gone, by policy"};
inline constexpr MetricDef kRouterAgainRows{
    "switchyard_router_dispatch_again_rows_total", kCounter,
    "(token, expert) pairs sent again, by reason: retry (their part failed), hedge (it was late)"};
inline constexpr MetricDef kRouterHedgesWon{"switchyard_router_dispatch_hedges_won_total", kCounter,
                                            "Parts that a replica answered first"};
inline constexpr MetricDef kRouterParkedRows{
    "switchyard_router_dispatch_parked_rows_total", kCounter,
    "(token, expert) pairs that had to wait for a worker to hold their expert"};
inline constexpr MetricDef kRouterHints{
    "switchyard_router_prefetch_hints_total", kCounter,
    "Experts that a worker was told will probably be wanted next, by worker"};
inline constexpr MetricDef kRouterWorkerUp{"switchyard_router_worker_up", kGauge,
                                           "1 while that worker serves this router, else 0"};
// The bounds of histograms without buckets here are powers of 2, as they are counted.
inline constexpr MetricDef kRouterDispatchSeconds{
    "switchyard_router_dispatch_seconds", kHistogram,
    "Time from sending a part of a call to its answer, by worker"};
inline constexpr MetricDef kRouterDispatchWireSeconds{
    "switchyard_router_dispatch_wire_seconds", kHistogram,
    "The same less what the worker says that the part waited and was computed, by worker"};
inline constexpr MetricDef kRouterDispatchBytes{"switchyard_router_dispatch_bytes_total", kCounter,
                                                "Bytes of frames, by worker and direction"};
inline constexpr MetricDef kRouterDispatchFrames{
    "switchyard_router_dispatch_frames_total", kCounter,
    "Frames of calls and answers, by worker and direction"};
inline constexpr MetricDef kRouterDispatchRows{"switchyard_router_dispatch_rows_total", kCounter,
                                               "(token, expert) pairs that were sent, by worker"};
inline constexpr MetricDef kRouterLostParts{
    "switchyard_router_dispatch_lost_parts_total", kCounter,
    "Parts of calls that came back late, wrong or never, by worker"};
inline constexpr MetricDef kRouterStaleAnswers{
    "switchyard_router_dispatch_stale_answers_total", kCounter,
    "Answers to parts that were no longer waited for, by worker"};
inline constexpr MetricDef kRouterWorkerConnects{"switchyard_router_worker_connects_total",
                                                 kCounter, "Streams to a worker that came up"};
inline constexpr MetricDef kRouterPlacementEpoch{
    "switchyard_router_placement_epoch", kGauge,
    "Epoch of the placement: state=followed, what is wanted; state=used, what rows go by"};
inline constexpr MetricDef kRouterPlacementSourceOk{
    "switchyard_router_placement_source_ok", kGauge,
    "1: what --placement or etcd has now is followed; 0: it cannot be read or used, the last good "
    "one is followed"};
inline constexpr MetricDef kRouterPlacementsRefused{
    "switchyard_router_placements_refused_total", kCounter,
    "Versions of the placement that could not be used"};
inline constexpr MetricDef kRouterBalancerState{
    "switchyard_router_balancer_state", kGauge,
    "1 for what it is: state=acting; state=standby, another router does it; state=rival, it has "
    "left off, as another router places experts too"};
inline constexpr MetricDef kRouterBalancerSilent{
    "switchyard_router_balancer_silent_seconds", kGauge,
    "Since the balancer's last look came to an end: more than some times --balance, and it is "
    "stuck"};
inline constexpr MetricDef kRouterBalancerPlans{
    "switchyard_router_balancer_plans_total", kCounter,
    "Plans: result=published; result=kept, nothing was to be gained; result=failed"};
inline constexpr MetricDef kRouterBalancerUtilisation{
    "switchyard_router_balancer_utilisation", kGauge,
    "Part of a step's time in which workers compute, by the load of the last plan: of=present, as "
    "they are; of=planned, as they would be"};
inline constexpr MetricDef kRouterBalancerBytes{
    "switchyard_router_balancer_moved_bytes_total", kCounter,
    "Weights that workers were to load for placements of this balancer"};
inline constexpr MetricDef kRouterMigrations{"switchyard_router_migrations_total", kCounter,
                                             "Placements that came into use"};
inline constexpr MetricDef kRouterExpertsMoving{
    "switchyard_router_experts_moving", kGauge,
    "Replicas that the placement wants and no worker holds yet, over all layers"};
inline constexpr MetricDef kRouterOrphans{"switchyard_router_orphan_experts", kGauge,
                                          "Experts that no live worker holds, over all layers"};
inline constexpr MetricDef kRouterTakeovers{
    "switchyard_router_takeovers_total", kCounter,
    "Experts of lost workers that others were asked to load"};
inline constexpr MetricDef kRouterFailedLoads{"switchyard_router_failed_expert_loads", kGauge,
                                              "Experts that some worker could not load"};
inline constexpr MetricDef kRouterWorkersAhead{
    "switchyard_router_workers_ahead", kGauge,
    "Workers that were told a placement of a higher epoch than this router follows, and do not "
    "heed its own"};
inline constexpr MetricDef kRouterWorkerEjections{
    "switchyard_router_worker_ejections_total", kCounter,
    "Times that a worker was left alone for being slow, silent or gone, by worker"};
inline constexpr MetricDef kRouterWorkerEjected{
    "switchyard_router_worker_ejected", kGauge,
    "1 while a worker is left alone where a replica can do its work, else 0"};

inline constexpr MetricDef kRouterKnownWorkers{
    "switchyard_router_known_workers", kGauge,
    "Workers that this router has links to: given, resolved or announced"};

// ---- expert worker ----
inline constexpr MetricDef kWorkerAnnounced{"switchyard_worker_announced", kGauge,
                                            "1 while this worker stands in etcd, else 0"};
inline constexpr MetricDef kWorkerFrames{"switchyard_worker_frames_total", kCounter,
                                         "Parts of calls that were taken"};
inline constexpr MetricDef kWorkerRows{"switchyard_worker_rows_total", kCounter,
                                       "(row, expert) pairs that were computed"};
inline constexpr MetricDef kWorkerComputations{"switchyard_worker_computations_total", kCounter,
                                               "Grouped computations"};
inline constexpr MetricDef kWorkerMerged{"switchyard_worker_merged_frames_total", kCounter,
                                         "Parts that shared their computation with another"};
inline constexpr MetricDef kWorkerCancelled{"switchyard_worker_cancelled_frames_total", kCounter,
                                            "Parts that were dropped before they were computed"};
inline constexpr MetricDef kWorkerSegments{"switchyard_worker_segments_total", kCounter,
                                           "Segments that were answered, by status"};
inline constexpr MetricDef kWorkerBatchRows{"switchyard_worker_batch_rows", kHistogram,
                                            "Pairs of one grouped computation"};
inline constexpr MetricDef kWorkerComputeSeconds{"switchyard_worker_compute_seconds", kHistogram,
                                                 "Time of one grouped computation"};
inline constexpr MetricDef kWorkerQueueSeconds{"switchyard_worker_queue_seconds", kHistogram,
                                               "Time of a part before its computation"};
inline constexpr MetricDef kWorkerWaiting{"switchyard_worker_waiting_frames", kGauge,
                                          "Parts that wait to be computed"};
inline constexpr MetricDef kWorkerRouters{"switchyard_worker_routers", kGauge, "Connected routers"};
inline constexpr MetricDef kWorkerBroken{
    "switchyard_worker_broken_streams_total", kCounter,
    "Streams that were ended for undecodable frames or overdrawn credits"};
inline constexpr MetricDef kWorkerRefused{
    "switchyard_worker_refused_streams_total", kCounter,
    "Streams that were refused: other numerics, too many, or no hello in time"};
inline constexpr MetricDef kWorkerUnknownCancels{"switchyard_worker_unknown_cancels_total",
                                                 kCounter, "Cancels of calls that are not open"};
inline constexpr MetricDef kWorkerExperts{"switchyard_worker_experts", kGauge,
                                          "Experts held, over all layers, by tier"};
inline constexpr MetricDef kWorkerMappedBytes{"switchyard_worker_mapped_bytes", kGauge,
                                              "Bytes of weights that are mapped"};
inline constexpr MetricDef kWorkerResidentBytes{"switchyard_worker_resident_bytes", kGauge,
                                                "Bytes of weights that are held in memory"};
inline constexpr MetricDef kWorkerMemoryBytes{
    "switchyard_worker_memory_bytes", kGauge,
    "Bytes that weights may take in memory; 0: as many as they do"};
inline constexpr MetricDef kWorkerEpoch{
    "switchyard_worker_epoch", kGauge,
    "Epoch of the placement: the last one assigned, and the last one of which all is held"};
inline constexpr MetricDef kWorkerToLoad{"switchyard_worker_experts_to_load", kGauge,
                                         "Experts that are wanted here and still to be loaded"};
inline constexpr MetricDef kWorkerLoads{"switchyard_worker_loads_total", kCounter,
                                        "Experts that were loaded while serving, by result"};
inline constexpr MetricDef kWorkerRemoved{"switchyard_worker_removed_experts_total", kCounter,
                                          "Experts that a placement took away from here"};
inline constexpr MetricDef kWorkerLoadedBytes{
    "switchyard_worker_loaded_bytes_total", kCounter,
    "Bytes of weights that were read while serving, by cause"};
inline constexpr MetricDef kWorkerHits{"switchyard_worker_memory_hits_total", kCounter,
                                       "Segments whose expert was in memory"};
inline constexpr MetricDef kWorkerMisses{"switchyard_worker_memory_misses_total", kCounter,
                                         "Segments whose expert had to be read first"};
inline constexpr MetricDef kWorkerStall{"switchyard_worker_memory_stall_seconds_total", kCounter,
                                        "Time that computations waited for experts to be read"};
inline constexpr MetricDef kWorkerPromotions{"switchyard_worker_promotions_total", kCounter,
                                             "Experts that were brought into memory, by cause"};
inline constexpr MetricDef kWorkerDemotions{"switchyard_worker_demotions_total", kCounter,
                                            "Experts that had to leave memory for others"};
inline constexpr MetricDef kWorkerPacks{"switchyard_worker_device_packs_total", kCounter,
                                        "Experts that were packed for the GPU in pinned memory"};
inline constexpr MetricDef kWorkerUploads{"switchyard_worker_device_uploads_total", kCounter,
                                          "Experts that were copied to the GPU"};
inline constexpr MetricDef kWorkerUploadedBytes{"switchyard_worker_device_uploaded_bytes_total",
                                                kCounter, "Bytes of experts copied to the GPU"};
inline constexpr MetricDef kWorkerUploadTime{
    "switchyard_worker_device_upload_seconds_total", kCounter,
    "Time that threads waited for copies of experts to the GPU"};
inline constexpr MetricDef kWorkerPinned{"switchyard_worker_device_pinned_bytes", kGauge,
                                         "Pinned memory of the host that holds packed experts"};

}  // namespace switchyard::telemetry
